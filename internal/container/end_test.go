package container

import (
	"context"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/record"
	"berth/internal/supervisor/wire"
)

// How an exit code becomes a reason.
func TestReasonOfAnEnd(t *testing.T) {
	s, _ := newService(t)
	at := time.Unix(5, 0)
	for _, tc := range []struct {
		name       string
		supervisor string
		says       string
		code       uint32
		want       end
	}{
		{name: "success", code: 0, want: end{code: 0, at: at, reason: "Completed"}},
		{name: "failure", code: 3, want: end{code: 3, at: at, reason: "Error"}},
		{name: "signal", code: 137, want: end{code: 137, at: at, reason: "Error"}},
		{name: "255 of a shim", code: 255, says: "nobody is asked", want: end{code: 255, at: at, reason: "Error"}},
		{name: "a plain 255", supervisor: "n", code: 255, want: end{code: 255, at: at, reason: "Error"}},
		{name: "not known", supervisor: "n", says: "it was away", code: 255, want: end{code: 255, at: at, reason: "Unknown", message: "it was away"}},
	} {
		s.Supervisors = unknowing{reason: tc.says}
		l := newLive("c")
		l.supervisor = tc.supervisor
		if got := s.endOf(l, tc.code, at); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

// An end is written down once and told; a start that was refused is one.
func TestRecordedEnds(t *testing.T) {
	s, events := newService(t)
	put(t, s, "ran", record.ContainerRunning, func(c *record.Container) { c.PID = 7 })
	put(t, s, "refused", record.ContainerCreated)
	at := time.Unix(9, 0)
	if !s.recordEnd(t.Context(), "ran", end{4, at, "Error", "why"}) {
		t.Error("the end is not recorded")
	}
	if !s.recordEnd(t.Context(), "removed meanwhile", end{}) {
		t.Error("an end of nothing is waited for")
	}
	if err := s.recordRefused("refused", &startError{os.ErrNotExist}); err != nil {
		t.Error(err)
	}
	ran, refused := get(t, s, "ran"), get(t, s, "refused")
	if ran.State != record.ContainerExited || ran.PID != 0 || ran.ExitCode != 4 || ran.Reason != "Error" || ran.Message != "why" || !ran.FinishedAt.Equal(at) {
		t.Errorf("ended: %+v", ran)
	}
	if refused.State != record.ContainerExited || refused.ExitCode != startExitCode || refused.Reason != "StartError" || refused.Message != os.ErrNotExist.Error() {
		t.Errorf("refused: %+v", refused)
	}
	const stopped = "CONTAINER_STOPPED_EVENT "
	if diff := cmp.Diff([]string{stopped + "ran", stopped + "refused"}, events.all()); diff != "" {
		t.Error(diff)
	}
}

// gone are supervisors that have lost what they had.
type gone struct{ unknowing }

func (gone) Task(context.Context, string, string) (wire.Task, error) {
	return wire.Task{}, errdefs.ErrNotFound
}

// A container whose task is gone when the daemon starts has ended in a way that
// is not known, whoever ran it.
func TestResumeOfWhatIsGone(t *testing.T) {
	s, _ := newService(t)
	s.Supervisors = gone{}
	put(t, s, "shim", record.ContainerRunning)
	put(t, s, "supervised", record.ContainerRunning, func(c *record.Container) { c.Handler, c.Supervisor = "berth", "n" })
	put(t, s, "exited", record.ContainerExited, func(c *record.Container) { c.ExitCode = 6 })
	for _, id := range []string{"shim", "supervised", "exited"} {
		if err := s.Resume(t.Context(), get(t, s, id)); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	for _, id := range []string{"shim", "supervised"} {
		if c := get(t, s, id); c.State != record.ContainerExited || c.ExitCode != unknownExitCode || c.Reason != "Unknown" || c.Message == "" {
			t.Errorf("%s: %+v", id, c)
		}
	}
	if c := get(t, s, "exited"); c.ExitCode != 6 || c.Reason != "" {
		t.Errorf("one that had ended: %+v", c)
	}
}

// Calls on containers that do not run.
func TestCallsByState(t *testing.T) {
	s, _ := newService(t)
	put(t, s, "creating", record.ContainerCreating)
	put(t, s, "created", record.ContainerCreated)
	put(t, s, "exited", record.ContainerExited)
	put(t, s, "untaken", record.ContainerRunning)
	any := func(error) bool { return true }
	none := func(err error) bool { return err == nil }
	for _, tc := range []struct {
		id                string
		start, stop, exec func(error) bool
	}{
		{"missing", errdefs.IsNotFound, none, errdefs.IsNotFound},
		{"creating", errdefs.IsNotFound, none, errdefs.IsNotFound},
		{"created", any, none, errdefs.IsFailedPrecondition},
		{"exited", errdefs.IsFailedPrecondition, none, errdefs.IsFailedPrecondition},
		{"untaken", none, errdefs.IsUnavailable, errdefs.IsFailedPrecondition},
	} {
		if tc.id != "created" { // its start would be the real one
			if err := s.Start(t.Context(), tc.id); !tc.start(err) {
				t.Errorf("start of %s: %v", tc.id, err)
			}
		}
		if err := s.Stop(t.Context(), tc.id, time.Second); !tc.stop(err) {
			t.Errorf("stop of %s: %v", tc.id, err)
		}
		if _, err := s.Exec(t.Context(), tc.id, []string{"true"}, Streams{}); !tc.exec(err) {
			t.Errorf("exec in %s: %v", tc.id, err)
		}
	}
	if _, err := s.Create(t.Context(), "no such sandbox", &runtime.ContainerConfig{}); !errdefs.IsNotFound(err) {
		t.Errorf("create without a sandbox: %v", err)
	}
	if _, err := s.Store.Sandboxes.Update("box", func(b *record.Sandbox) { b.State = record.SandboxStopping }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), "box", &runtime.ContainerConfig{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("create in a sandbox that stops: %v", err)
	}
	if err := s.Start(t.Context(), "created"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start in a sandbox that stops: %v", err)
	}
}

// A signal to one whose shim does not answer is no error once its end is there.
func TestSignalMeetsTheEnd(t *testing.T) {
	l := newLive("c")
	if err := l.send(t.Context(), syscall.SIGTERM); !errdefs.IsUnavailable(err) {
		t.Errorf("without an end: %v", err)
	}
	time.AfterFunc(10*time.Millisecond, func() { close(l.exited) })
	for range 2 { // while it ends, and after it
		if err := l.send(t.Context(), syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}
}

// The sandbox container goes after the pod's others have given back their
// tasks, and is no stray of this package.
func TestDropPause(t *testing.T) {
	s, _ := newService(t)
	put(t, s, "last", record.ContainerExited)
	ctx := s.Engine.Context(t.Context())
	made, err := s.pauseRecord(&record.Sandbox{ID: "box", Handler: "runc", CgroupParent: "/x", Config: &runtime.PodSandboxConfig{}})
	if err != nil {
		t.Fatal(err)
	}
	stray := containers.Container{ID: "stray", Labels: s.marked(nil, kindContainer), Spec: made.Spec, Runtime: made.Runtime}
	for _, c := range []containers.Container{made, stray} {
		if _, err := s.client.ContainerService().Create(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	strays, err := s.Strays(t.Context())
	if diff := cmp.Diff([]string{"stray"}, strays); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	l := newLive("last")
	s.mu.Lock()
	s.live["last"] = l
	s.mu.Unlock()
	waiting, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.DropPause(waiting, "box", ""); !errdefs.IsUnavailable(err) {
		t.Errorf("while a container holds its task: %v", err)
	}
	close(l.gone)
	for range 2 {
		if err := s.DropPause(t.Context(), "box", ""); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.client.ContainerService().Get(ctx, "box"); !errdefs.IsNotFound(err) {
		t.Errorf("it is there: %v", err)
	}
}
