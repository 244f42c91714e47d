package container

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/record"
	"berth/internal/spec"
)

// What the runtime refuses ends the container; what cut the call does not.
func TestRefused(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		err  error
		ctx  context.Context
		want bool
	}{
		{err: nil},
		{err: errors.New("exec: no such file or directory"), want: true},
		{err: errdefs.ErrInvalidArgument, want: true},
		{err: errors.New("anything"), ctx: gone},
		{err: fmt.Errorf("create: %w", errdefs.ErrUnavailable)},
		{err: context.DeadlineExceeded},
		{err: context.Canceled},
		{err: errdefs.ErrAlreadyExists},
		{err: errors.New("ttrpc: closed")},
	} {
		if tc.ctx == nil {
			tc.ctx = t.Context()
		}
		if got := refused(tc.ctx, tc.err); got != tc.want {
			t.Errorf("%v: %t", tc.err, got)
		}
		if marked := new(startError); errors.As(refusal(tc.ctx, tc.err), &marked) != tc.want {
			t.Errorf("%v: not marked as it is", tc.err)
		}
	}
}

func TestSignalOfTheCRI(t *testing.T) {
	for name, want := range map[string]runtime.Signal{
		"SIGTERM": runtime.Signal_SIGNAL_SIGTERM, "HUP": runtime.Signal_SIGNAL_SIGHUP, "9": runtime.Signal_SIGNAL_SIGKILL,
		"SIGRTMIN+3": runtime.Signal_SIGNAL_SIGRTMINPLUS3, "RTMAX-1": runtime.Signal_SIGNAL_SIGRTMAXMINUS1,
		"": runtime.Signal_SIGNAL_RUNTIME_DEFAULT, "nonsense": runtime.Signal_SIGNAL_RUNTIME_DEFAULT,
	} {
		if got := criSignal(name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}

func TestStatus(t *testing.T) {
	at := time.Unix(100, 7)
	c := &record.Container{
		ID: "c", Config: &runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: "n"}}, State: record.ContainerExited,
		CreatedAt: at, StartedAt: at, ExitCode: 3, Reason: "Error", Message: "m", UID: 1, GID: 2, Groups: []uint32{2, 5}, StopSignal: "SIGINT",
	}
	got, err := Status(c)
	if err != nil {
		t.Fatal(err)
	}
	if got.State != runtime.ContainerState_CONTAINER_EXITED || got.StartedAt != at.UnixNano() || got.FinishedAt != 0 || got.ExitCode != 3 ||
		got.Reason != "Error" || got.StopSignal != runtime.Signal_SIGNAL_SIGINT {
		t.Errorf("got %v", got)
	}
	if diff := cmp.Diff([]int64{2, 5}, got.User.Linux.SupplementalGroups); diff != "" {
		t.Error(diff)
	}
	c.InForce = []byte{0xff}
	if _, err := Status(c); err == nil {
		t.Error("damaged resources are shown")
	}
	for state, want := range map[record.ContainerState]bool{record.ContainerCreating: false, record.ContainerCreated: true, record.ContainerExited: true} {
		if got := Shown(&record.Container{State: state}); got != want {
			t.Errorf("%s is shown: %t", state, got)
		}
	}
}

// A repeated CreateContainer finds what the first one made, while nothing has
// come of it.
func TestExisting(t *testing.T) {
	s, _ := newService(t)
	put(t, s, "created", record.ContainerCreated)
	put(t, s, "running", record.ContainerRunning)
	put(t, s, "exited", record.ContainerExited)
	put(t, s, "half", record.ContainerCreating)
	put(t, s, "elsewhere", record.ContainerCreated, func(c *record.Container) { c.SandboxID = "other" })
	box := &record.Sandbox{ID: "box"}
	for _, tc := range []struct {
		name    string
		attempt uint32
		id      string
		exists  bool
	}{
		{name: "created", id: "created"},
		{name: "created", attempt: 1},
		{name: "running", exists: true},
		{name: "exited", exists: true},
		{name: "exited", attempt: 1},
		{name: "elsewhere"},
		{name: "half"}, // undone
		{name: "new"},
	} {
		id, err := s.existing(t.Context(), box, &runtime.ContainerMetadata{Name: tc.name, Attempt: tc.attempt})
		if id != tc.id || errdefs.IsAlreadyExists(err) != tc.exists || err != nil && !tc.exists {
			t.Errorf("%s attempt %d: %q, %v", tc.name, tc.attempt, id, err)
		}
	}
	if _, err := s.Store.Containers.Get("half"); !errdefs.IsNotFound(err) {
		t.Errorf("what was half made is there: %v", err)
	}
}

// The namespaces that a container joins, by what it asks for.
func TestNamespacesToJoin(t *testing.T) {
	s, _ := newService(t)
	node := func(o *runtime.NamespaceOption) {
		o.Network, o.Ipc = runtime.NamespaceMode_NODE, runtime.NamespaceMode_NODE
	}
	shared := func(o *runtime.NamespaceOption) { o.Pid = runtime.NamespaceMode_POD }
	at := func(kind string) string { return s.Paths.Namespace("box", kind) }
	pinned := spec.Namespaces{Net: at("net"), UTS: at("uts"), IPC: at("ipc")}
	withPID := func(path string) spec.Namespaces { n := pinned; n.PID = path; return n }
	for _, tc := range []struct {
		name  string
		pod   func(*runtime.NamespaceOption)
		pause bool
		init  *record.Process
		want  spec.Namespaces
	}{
		{name: "own PID", want: pinned},
		{name: "the node's", pod: node},
		{name: "the pod's PID", pod: shared, want: withPID(at("pid"))},
		{name: "the sandbox container's PID", pod: shared, pause: true, init: &record.Process{PID: 12}, want: withPID("/proc/12/ns/pid")},
		{name: "a sandbox container that is gone", pod: shared, pause: true, want: pinned},
	} {
		o := &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}
		if tc.pod != nil {
			tc.pod(o)
		}
		box := &record.Sandbox{ID: "box", Pause: tc.pause, Init: tc.init, Config: &runtime.PodSandboxConfig{
			Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: o}}}}
		got, err := s.namespaces(&creation{box: box, rec: &record.Container{ID: "c", Config: &runtime.ContainerConfig{}}})
		if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", tc.name, err, diff)
		}
	}
	target := &runtime.ContainerConfig{Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
		NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_TARGET, TargetId: "exited"}}}}
	put(t, s, "exited", record.ContainerExited)
	_, err := s.namespaces(&creation{box: &record.Sandbox{ID: "box", Config: &runtime.PodSandboxConfig{}}, rec: &record.Container{ID: "c", Config: target}})
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a target that has ended: %v", err)
	}
}

// What each kind of runtime is handed.
func TestRuntimeOptions(t *testing.T) {
	s, _ := newService(t)
	for _, tc := range []struct {
		name string
		h    Handler
		want any
	}{
		{"supervisor", Handler{Type: "io.containerd.berth.v1", Supervisor: "node"}, nil},
		{"runc", Handler{Type: "io.containerd.runc.v2", Binary: "/bin/runc"}, &options.Options{BinaryName: "/bin/runc", Root: s.runcRoot()}},
		{"nothing", Handler{Type: "io.containerd.kata.v2"}, nil},
		{"its file", Handler{Type: "io.containerd.runsc.v1", ConfigPath: "/etc/runsc.toml"},
			&runtimeoptions.Options{TypeUrl: "io.containerd.runsc.v1.options", ConfigPath: "/etc/runsc.toml"}},
		{"by path", Handler{Type: "/opt/shim", ConfigPath: "/etc/x"}, &runtimeoptions.Options{ConfigPath: "/etc/x"}},
	} {
		s.Handlers["h"] = tc.h
		got, err := s.runtimeOptions(&creation{
			rec: &record.Container{ID: "c", Handler: "h", Config: &runtime.ContainerConfig{}},
			box: &record.Sandbox{Config: &runtime.PodSandboxConfig{}},
		})
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if tc.h.Supervisor != "" {
			if got == nil || !strings.Contains(string(got.GetValue()), s.stdioDir("c")) {
				t.Errorf("%s: %v", tc.name, got)
			}
			continue
		}
		if tc.want == nil {
			if got != nil {
				t.Errorf("%s: %v", tc.name, got)
			}
			continue
		}
		want, err := typeurl.MarshalAny(tc.want)
		if err != nil {
			t.Fatal(err)
		}
		if got.GetTypeUrl() != want.GetTypeUrl() || string(got.GetValue()) != string(want.GetValue()) {
			t.Errorf("%s: %v, want %v", tc.name, got, want)
		}
	}
}

func TestLabels(t *testing.T) {
	s, _ := newService(t)
	got := s.marked(map[string]string{"app": "x", "long": strings.Repeat("y", 5000), kindLabel: "mine"}, kindContainer)
	want := map[string]string{"app": "x", kindLabel: "container", LabelRoot: s.Paths.Root}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
