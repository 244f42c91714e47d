package serve_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestLife(t *testing.T) {
	s := start(t)
	ctx := testContext(t)
	id := "one"
	pid, err := s.create(id, s.bundle(id, "echo err >&2; exit 7"), s.options(id))
	must(t, err)
	state := func() task.Status {
		res, err := s.task.State(ctx, &taskAPI.StateRequest{ID: id})
		must(t, err)
		if res.Pid != pid {
			t.Errorf("state has pid %d, want %d", res.Pid, pid)
		}
		return res.Status
	}
	if got := state(); got != task.Status_CREATED {
		t.Errorf("after create: %v", got)
	}
	_, err = s.task.Start(ctx, &taskAPI.StartRequest{ID: id})
	must(t, err)
	if got := s.wait(id, ""); got != 7 {
		t.Errorf("exit status %d, want 7", got)
	}
	if got := state(); got != task.Status_STOPPED {
		t.Errorf("after the end: %v", got)
	}
	// What was written last is in the log when the end is told.
	if diff := cmp.Diff("stderr F err\n", s.log(id)); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	pids, err := s.task.Pids(ctx, &taskAPI.PidsRequest{ID: id})
	must(t, err)
	if len(pids.Processes) != 1 {
		t.Errorf("one that has ended shows %d processes, want its init", len(pids.Processes))
	}
	s.remove(id)
	_, err = s.task.State(ctx, &taskAPI.StateRequest{ID: id})
	if !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("after delete: %v", err)
	}
}

func TestKillAndExec(t *testing.T) {
	s := start(t)
	ctx := testContext(t)
	s.launch("box", "trap 'exit 3' TERM; while true; do sleep 1; done")
	out, code := s.exec("box", "e1", "read line; echo got $line; exit 5", "hello\n")
	if out != "got hello\n" || code != 5 {
		t.Errorf("exec: %q, %d", out, code)
	}
	if _, err := s.task.Delete(ctx, &taskAPI.DeleteRequest{ID: "box"}); !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
		t.Errorf("delete of one that runs: %v", err)
	}
	_, err := s.task.Kill(ctx, &taskAPI.KillRequest{ID: "box", Signal: uint32(unix.SIGTERM)})
	must(t, err)
	if got := s.wait("box", ""); got != 3 {
		t.Errorf("exit status %d, want 3", got)
	}
	if _, err := s.task.Kill(ctx, &taskAPI.KillRequest{ID: "box", Signal: 9}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("kill of one that has ended: %v", err)
	}
	s.remove("box")
	s.launch("killed", "sleep 1000")
	_, err = s.task.Kill(ctx, &taskAPI.KillRequest{ID: "killed", Signal: 9})
	must(t, err)
	if got := s.wait("killed", ""); got != 137 {
		t.Errorf("exit status %d, want 137", got)
	}
	s.remove("killed")
}

// exec runs a script in a container by FIFOs, as containerd's client does.
func (s *supervisor) exec(id, execID, script, input string) (out string, code uint32) {
	s.t.Helper()
	ctx := testContext(s.t)
	dir, err := os.MkdirTemp(s.state, "exec-")
	must(s.t, err)
	in, stdout := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	must(s.t, unix.Mkfifo(in, 0o600))
	must(s.t, unix.Mkfifo(stdout, 0o600))
	spec, err := json.Marshal(&specs.Process{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}})
	must(s.t, err)
	_, err = s.task.Exec(ctx, &taskAPI.ExecProcessRequest{
		ID: id, ExecID: execID, Stdin: in, Stdout: stdout, Spec: &anypb.Any{Value: spec},
	})
	must(s.t, err)
	read := make(chan string, 1)
	go func() {
		data, err := os.ReadFile(stdout)
		if err != nil {
			s.t.Error(err)
		}
		read <- string(data)
	}()
	_, err = s.task.Start(ctx, &taskAPI.StartRequest{ID: id, ExecID: execID})
	must(s.t, err)
	w, err := os.OpenFile(in, os.O_RDWR, 0) // the command may have ended
	must(s.t, err)
	_, err = io.WriteString(w, input)
	must(s.t, err)
	must(s.t, w.Close())
	_, err = s.task.CloseIO(ctx, &taskAPI.CloseIORequest{ID: id, ExecID: execID, Stdin: true})
	must(s.t, err)
	code = s.wait(id, execID)
	_, err = s.task.Delete(ctx, &taskAPI.DeleteRequest{ID: id, ExecID: execID})
	must(s.t, err)
	return <-read, code
}

// Nothing is left of many containers at once: no descriptor, no process.
func TestMany(t *testing.T) {
	s := start(t)
	s.launch("first", "true")
	s.wait("first", "")
	s.remove("first")
	before := s.fds()
	var group sync.WaitGroup
	for i := range 50 {
		id := fmt.Sprintf("many-%d", i)
		bundle := s.bundle(id, fmt.Sprintf("echo %d; cat /proc/self/stat > /dev/null; exit %d", i, i))
		group.Go(func() {
			if _, err := s.create(id, bundle, s.options(id)); err != nil {
				t.Errorf("create %s: %v", id, err)
				return
			}
			if _, err := s.task.Start(testContext(t), &taskAPI.StartRequest{ID: id}); err != nil {
				t.Errorf("start %s: %v", id, err)
			}
			if got := s.wait(id, ""); got != uint32(i) {
				t.Errorf("%s: exit status %d", id, got)
			}
			if diff := cmp.Diff(fmt.Sprintf("stdout F %d\n", i), s.log(id)); diff != "" {
				t.Errorf("%s: log (-want +got):\n%s", id, diff)
			}
			s.remove(id)
		})
	}
	group.Wait()
	within(t, "the supervisor has child processes", func() bool { return s.children() == 0 })
	// Buffers keep a pipe each until the collector comes.
	within(t, fmt.Sprintf("the supervisor has more than %d descriptors", before+32), func() bool { return s.fds() <= before+32 })
	left, err := os.ReadDir(filepath.Join(s.state, "supervisor", s.name+".d", "tasks"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("state files are left: %v", left)
	}
}
