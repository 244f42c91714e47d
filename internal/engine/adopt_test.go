package engine

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/internal/host"
)

// A helper is a process that looks like a call of a shim binary.
type helper struct {
	cmd   *exec.Cmd
	ended chan error
}

// startHelper starts one that waits, with the clone flags; it is ended at the
// test's end.
func startHelper(t *testing.T, o Options, program, action string, flags uintptr) *helper {
	t.Helper()
	path := filepath.Join(t.TempDir(), program)
	if err := os.Symlink("/bin/busybox", path); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.Args = []string{"busybox", "sh", "-c", "echo up; read x", "-namespace", "k8s.io", "-id", "x", "-address", o.Socket, action}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := &helper{cmd: cmd, ended: make(chan error, 1)}
	_, err = io.ReadFull(out, make([]byte, len("up\n"))) // executed, so it has its name
	go func() { h.ended <- cmd.Wait() }()
	t.Cleanup(func() {
		in.Close()
		h.ended <- <-h.ended
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// killed waits for the helper to end.
func (h *helper) killed(t *testing.T) {
	t.Helper()
	err := <-h.ended
	h.ended <- err
	if err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the helper ended with %v", err)
	}
}

func shortEnd(t *testing.T) {
	before := shimEnd
	shimEnd = 100 * time.Millisecond
	t.Cleanup(func() { shimEnd = before })
}

// A killed daemon's "shim start" still runs: it is ended before it makes a shim
// that nobody knows. Its "shim delete" that hangs is ended too, after a while.
func TestHelpersThatStillRun(t *testing.T) {
	shortEnd(t)
	dir := tempDir(t)
	o := optionsIn(dir, nil)
	helpers := []*helper{startHelper(t, o, "containerd-shim-test-v1", "start", 0)}
	for range 3 {
		helpers = append(helpers, startHelper(t, o, "containerd-shim-test-v1", "delete", 0))
	}
	start(t, dir)
	for _, h := range helpers {
		h.killed(t)
	}
}

// A shim that a handler gives by its path need not have a shim's name.
func TestHelperOfAnotherName(t *testing.T) {
	o := optionsIn(tempDir(t), nil)
	o.Log, _ = testLog(t)
	h := startHelper(t, o, "a-shim-with-a-long-name", "start", 0)
	if found, err := o.findShims(t.Context()); err != nil || len(found) > 0 {
		t.Errorf("before its name is known: %v, %v", found, err)
	}
	o.Shims = []string{"/opt/a-shim-with-a-long-name"}
	if found, err := o.findShims(t.Context()); err != nil || len(found) > 0 {
		t.Errorf("found %v, %v", found, err)
	}
	h.killed(t)
}

// A container can give its processes any name and command line: they are
// neither waited for nor killed, whatever namespaces it shares with the host.
func TestForgedHelpers(t *testing.T) {
	for name, flags := range map[string]uintptr{
		"of a pod":                 syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		"of a pod with hostPID":    syscall.CLONE_NEWNS,
		"in a PID namespace alone": syscall.CLONE_NEWPID,
	} {
		t.Run(name, func(t *testing.T) {
			o := optionsIn(tempDir(t), nil)
			o.Log, _ = testLog(t)
			forged := startHelper(t, o, "containerd-shim-runc-v2", "start", flags)
			if found, err := o.findShims(t.Context()); err != nil || len(found) > 0 {
				t.Errorf("found %v, %v", found, err)
			}
			p, err := host.ProcessOf(forged.cmd.Process.Pid)
			if err != nil || !p.Alive() {
				t.Errorf("it was killed: %v", err)
			}
		})
	}
}
