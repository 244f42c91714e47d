package reconcile

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/internal/record"
)

func TestMake(t *testing.T) {
	box := func(id string, s record.SandboxState) *record.Sandbox { return &record.Sandbox{ID: id, State: s} }
	ctr := func(id, in string, s record.ContainerState) *record.Container {
		return &record.Container{ID: id, SandboxID: in, State: s}
	}
	for _, tc := range []struct {
		name  string
		facts Facts
		want  Plan
	}{
		{name: "nothing"},
		{name: "a running pod is taken up",
			facts: Facts{
				Sandboxes:  []*record.Sandbox{box("s", record.SandboxReady)},
				Containers: []*record.Container{ctr("run", "s", record.ContainerRunning), ctr("end", "s", record.ContainerExited)},
			},
			want: Plan{
				Resume: []Action{{Kind: Sandbox, ID: "s"}, {Kind: Container, ID: "run"}},
				Tidy:   []Action{{Kind: Container, ID: "end"}},
			},
		},
		{name: "what was cut is undone once",
			facts: Facts{
				Sandboxes:       []*record.Sandbox{box("s", record.SandboxCreating), box("r", record.SandboxReady)},
				Containers:      []*record.Container{ctr("c", "r", record.ContainerCreating), ctr("d", "r", record.ContainerCreated)},
				StraySandboxes:  []string{"x"},
				StrayContainers: []string{"y"},
				Unfinished: []record.Unfinished{
					{Op: "RunPodSandbox", Object: "s", Step: "network"}, {Op: "RunPodSandbox", Object: "x", Step: "record"},
					{Op: "CreateContainer", Object: "c", Step: "snapshot"}, {Op: "CreateContainer", Object: "y", Step: "record"},
					{Op: "StartContainer", Object: "d", Step: "task"}, {Op: "PullImage", Object: "busybox", Step: "fetch"},
				},
			},
			want: Plan{
				Resume: []Action{{Kind: Sandbox, ID: "r"}},
				Containers: []Action{
					{Kind: Container, ID: "c", Undo: "CreateContainer", Why: "cut at step snapshot"},
					{Kind: Container, ID: "y", Undo: "CreateContainer", Why: "cut at step record"},
					{Kind: Container, ID: "d", Undo: "StartContainer", Why: "cut at step task"},
				},
				Sandboxes: []Action{
					{Kind: Sandbox, ID: "s", Undo: "RunPodSandbox", Why: "cut at step network"},
					{Kind: Sandbox, ID: "x", Undo: "RunPodSandbox", Why: "cut at step record"},
				},
				Images: []Action{{Kind: Image, ID: "busybox", Undo: "PullImage", Why: "cut at step fetch"}},
			},
		},
		{name: "a container that came to run is taken up although its start was not ended in the journal",
			facts: Facts{
				Sandboxes:  []*record.Sandbox{box("s", record.SandboxReady)},
				Containers: []*record.Container{ctr("c", "s", record.ContainerRunning)},
				Unfinished: []record.Unfinished{{Op: "StartContainer", Object: "c", Step: "running"}},
			},
			want: Plan{
				Resume:     []Action{{Kind: Sandbox, ID: "s"}, {Kind: Container, ID: "c"}},
				Containers: []Action{{Kind: Container, ID: "c", Undo: "StartContainer", Why: "cut at step running"}},
			},
		},
		{name: "strays and orphans are swept, a stopping pod waits for its retry",
			facts: Facts{
				Sandboxes:      []*record.Sandbox{box("s", record.SandboxStopping)},
				Containers:     []*record.Container{ctr("c", "gone", record.ContainerRunning)},
				StraySandboxes: []string{"x"}, StrayContainers: []string{"y"},
			},
			want: Plan{
				Containers: []Action{
					{Kind: Container, ID: "c", Remove: true, Why: "its sandbox is gone"},
					{Kind: Container, ID: "y", Undo: "CreateContainer", Why: "no record names it"},
				},
				Sandboxes: []Action{{Kind: Sandbox, ID: "x", Undo: "RunPodSandbox", Why: "no record names it"}},
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, Make(tc.facts)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
