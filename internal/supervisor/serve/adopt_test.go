package serve_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"berth/internal/supervisor/wire"
)

// ask makes a request of the control protocol.
func (s *supervisor) ask(req wire.Request, fds ...int) (wire.Response, []int) {
	s.t.Helper()
	c, err := wire.Dial(wire.Home(s.state, s.name))
	must(s.t, err)
	defer c.Close()
	req.Version = wire.Version
	must(s.t, c.Send(req, fds...))
	var res wire.Response
	got, err := c.Receive(&res)
	must(s.t, err)
	if !res.OK {
		s.t.Fatalf("%s: %s", req.Op, res.Error)
	}
	return res, got
}

// A supervisor that is killed takes no container along, and the next one goes
// on with them: output, input of commands, end.
func TestAdoption(t *testing.T) {
	s := start(t)
	ctx := testContext(t)
	go1, go2 := filepath.Join(s.state, "go1"), filepath.Join(s.state, "go2")
	must(t, unix.Mkfifo(go1, 0o600))
	must(t, unix.Mkfifo(go2, 0o600))
	script := "echo before; read x < /go1; echo between; read x < /go2; echo after; exit 9"
	bundle := s.bundle("box", script)
	for name, path := range map[string]string{"go1": go1, "go2": go2} {
		must(t, os.Link(path, filepath.Join(bundle, "rootfs", name)))
	}
	pid, err := s.create("box", bundle, s.options("box"))
	must(t, err)
	_, err = s.task.Start(ctx, &taskAPI.StartRequest{ID: "box"})
	must(t, err)
	created, err := s.create("created", s.bundle("created", "echo started; exit 4"), s.options("created"))
	must(t, err)
	within(t, "nothing in the log", func() bool { return s.log("box") == "stdout F before\n" })

	s.kill()
	write(t, go1)
	s.run()
	state, err := s.task.State(ctx, &taskAPI.StateRequest{ID: "box"})
	must(t, err)
	if state.Pid != pid || state.Status != task.Status_RUNNING {
		t.Errorf("adopted as pid %d, %v; want %d, running", state.Pid, state.Status, pid)
	}
	// The one that containerd asks for again is the one that is there.
	again, err := s.create("box", bundle, s.options("box"))
	must(t, err)
	if again != pid {
		t.Errorf("created again: pid %d, want %d", again, pid)
	}
	if out, code := s.exec("box", "e", "echo hello", ""); out != "hello\n" || code != 0 {
		t.Errorf("exec after adoption: %q, %d", out, code)
	}
	write(t, go2)
	if got := s.wait("box", ""); got != 9 {
		t.Errorf("exit status %d, want 9", got)
	}
	if diff := cmp.Diff("stdout F before\nstdout F between\nstdout F after\n", s.log("box")); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	// One that was created, not started, can be.
	started, err := s.task.Start(ctx, &taskAPI.StartRequest{ID: "created"})
	must(t, err)
	if started.Pid != created {
		t.Errorf("started pid %d, want %d", started.Pid, created)
	}
	if got := s.wait("created", ""); got != 4 {
		t.Errorf("exit status %d, want 4", got)
	}
	s.remove("box")
	s.remove("created")
}

// write lets a container go on that reads a FIFO.
func write(t testing.TB, fifo string) {
	t.Helper()
	must(t, os.WriteFile(fifo, []byte("\n"), 0o600))
}

// The end of a container while no supervisor runs is known to whoever kept its
// pidfd, and else reported as not known.
func TestEndMeanwhile(t *testing.T) {
	s := start(t)
	ctx := testContext(t)
	var kept wire.Response
	var fds []int
	for _, id := range []string{"kept", "lost", "ended", "zombie"} {
		s.launch(id, "trap 'exit 6' TERM; echo up; while true; do sleep 0.01; done")
		within(t, id+" does not run", func() bool { return strings.Contains(s.log(id), "up") })
	}
	kept, fds = s.ask(wire.Request{Op: wire.OpKeep, ID: "kept"})
	defer func() { must(t, wire.Close(fds)) }()
	_, err := s.task.Kill(ctx, &taskAPI.KillRequest{ID: "ended", Signal: uint32(unix.SIGTERM)})
	must(t, err)
	if got := s.wait("ended", ""); got != 6 {
		t.Errorf("exit status %d, want 6", got)
	}
	pids := map[string]int{}
	res, _ := s.ask(wire.Request{Op: wire.OpTasks})
	for _, task := range res.Tasks {
		pids[task.ID] = task.PID
	}
	s.kill()
	for _, id := range []string{"kept", "lost", "zombie"} {
		must(t, unix.Kill(pids[id], unix.SIGTERM))
		if id != "zombie" {
			if _, err := unix.Wait4(pids[id], nil, 0, nil); err != nil {
				t.Fatal(err)
			}
			continue
		}
		within(t, id+" does not end", func() bool {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pids[id]))
			return err == nil && strings.Contains(string(stat), ") Z ")
		})
	}
	s.run()
	s.ask(wire.Request{Op: wire.OpRestore, ID: "kept", Files: kept.Files}, fds...)
	for id, want := range map[string]uint32{"kept": 6, "lost": 255, "ended": 6, "zombie": 6} {
		if got := s.wait(id, ""); got != want {
			t.Errorf("%s: exit status %d, want %d", id, got, want)
		}
		res, _ := s.ask(wire.Request{Op: wire.OpTasks, ID: id})
		if reason := res.Tasks[0].Reason; (reason != "") != (want == 255) {
			t.Errorf("%s: reason %q", id, reason)
		}
		s.remove(id)
	}
	if _, err := unix.Wait4(pids["zombie"], nil, 0, nil); err != nil {
		t.Error(err)
	}
}
