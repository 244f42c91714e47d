package watch

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shell starts a shell and returns it with its pidfd.
func shell(t *testing.T, script string) (*exec.Cmd, int) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	})
	return cmd, fd
}

// An end is told once, and known of a zombie and after that.
func TestEnd(t *testing.T) {
	p, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for script, want := range map[string]uint32{"exit 3": 3, "kill -9 $$": 137, "exit 0": 0} {
		in, gate, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/bin/sh", "-c", "read x; "+script)
		cmd.Stdin = in
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		stat, err := ReadStat(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := EndOf(cmd.Process.Pid, stat.Start, fd); !errors.Is(err, ErrNotReaped) {
			t.Errorf("%s: end of one that runs: %v", script, err)
		}
		told := make(chan uint32, 10)
		token, err := p.Add(fd, unix.EPOLLIN|unix.EPOLLONESHOT, func(events uint32) { told <- events })
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(gate.Close(), in.Close()); err != nil {
			t.Fatal(err)
		}
		<-told
		ws, err := EndOf(cmd.Process.Pid, stat.Start, -1) // nobody has reaped it
		if err != nil || ExitCode(ws) != want {
			t.Errorf("%s: as a zombie %d, %v; want %d", script, ExitCode(ws), err, want)
		}
		if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		ws, err = EndOf(cmd.Process.Pid, stat.Start, fd)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) {
			t.Logf("this kernel does not tell: %v", err)
		} else if err != nil || ExitCode(ws) != want {
			t.Errorf("%s: after it was reaped %d, %v; want %d", script, ExitCode(ws), err, want)
		}
		p.Remove(token, fd)
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	}
}

// Closing twice is safe, and a watch that was removed is not called.
func TestPollerCloses(t *testing.T) {
	p, err := New()
	if err != nil {
		t.Fatal(err)
	}
	cmd, fd := shell(t, "sleep 1000")
	token, err := p.Add(fd, unix.EPOLLIN, func(uint32) { t.Error("called") })
	if err != nil {
		t.Fatal(err)
	}
	p.Remove(token, fd)
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was killed and ended well")
	}
	p.Close()
	p.Close()
}
