package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestProcess(t *testing.T) {
	cmd := sleeper(t, nil)
	p, err := ProcessOf(cmd.Process.Pid)
	must(t, err)
	if p.PID != cmd.Process.Pid || p.Start == 0 || !p.Alive() {
		t.Fatalf("process %+v alive=%v", p, p.Alive())
	}
	reused := Process{p.PID, p.Start - 1}
	if reused.Alive() {
		t.Error("another process with the number counts as the same")
	}
	if err := reused.Signal(syscall.SIGKILL); !errdefs.IsNotFound(err) {
		t.Errorf("signal to a number given away: %v", err)
	}
	must(t, reused.Wait(context.Background()))
	must(t, p.Signal(0))

	ctx, cancel := context.WithCancel(context.Background())
	waited := make(chan error)
	go func() { waited <- p.Wait(ctx) }()
	cancel()
	if err := <-waited; !errors.Is(err, context.Canceled) {
		t.Errorf("wait with its context ended: %v", err)
	}

	go func() { waited <- p.Wait(context.Background()) }()
	must(t, p.Signal(syscall.SIGTERM))
	must(t, <-waited)
	// It is a zombie now: nobody has waited for it as its parent.
	if p.Alive() {
		t.Error("a zombie counts as alive")
	}
	must(t, p.Wait(context.Background()))
	cmd.Wait()
	if p.Alive() {
		t.Error("alive after it was reaped")
	}
	if _, err := ProcessOf(p.PID); !errdefs.IsNotFound(err) {
		t.Errorf("process that is gone: %v", err)
	}
	if err := p.Signal(syscall.SIGKILL); !errdefs.IsNotFound(err) {
		t.Errorf("signal to one that is gone: %v", err)
	}
	for _, pid := range []int{0, -1, 1 << 30} {
		if _, err := ProcessOf(pid); !errdefs.IsNotFound(err) {
			t.Errorf("process %d: %v", pid, err)
		}
		if (Process{PID: pid}).Alive() {
			t.Errorf("process %d is alive", pid)
		}
	}
}

// The first process of a PID namespace ends long before it is seen to have
// ended: the kernel kills the others first.
func TestEnding(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "i=0; while [ $i -lt 200 ]; do sleep 1000 & i=$((i+1)); done; echo up; wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	out, err := cmd.StdoutPipe()
	must(t, err)
	start(t, cmd)
	_, err = out.Read(make([]byte, 1))
	must(t, err)
	p, err := ProcessOf(cmd.Process.Pid)
	must(t, err)
	if p.Ending() {
		t.Fatal("one that runs is ending")
	}
	must(t, p.Signal(syscall.SIGKILL))
	for {
		if _, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/ipc", p.PID)); err != nil {
			break
		}
	}
	if !p.Ending() {
		t.Error("one whose namespaces are gone is not ending")
	}
	must(t, p.Wait(context.Background()))
	if !p.Ending() {
		t.Error("one that has ended is not ending")
	}
}

// Wait works for a process whose parent is another one.
func TestWaitForAnothersChild(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "sleep 1000 & echo $!; wait")
	out, err := cmd.StdoutPipe()
	must(t, err)
	start(t, cmd)
	var pid int
	_, err = fmt.Fscan(out, &pid)
	must(t, err)
	p, err := ProcessOf(pid)
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	waited := make(chan error)
	go func() { waited <- p.Wait(ctx) }()
	must(t, p.Signal(syscall.SIGKILL))
	must(t, <-waited)
}

func TestFindProcesses(t *testing.T) {
	mark := fmt.Sprintf("100%d.5", os.Getpid())
	cmd := exec.Command("sleep", mark)
	cmd.Env = []string{"BERTH_TEST=" + mark, "OTHER=x"}
	start(t, cmd)
	want, err := ProcessOf(cmd.Process.Pid)
	must(t, err)

	found, err := FindProcesses(func(cmdline []string) bool { return slices.Equal(cmdline, []string{"sleep", mark}) })
	must(t, err)
	if !slices.Equal(found, []Process{want}) {
		t.Errorf("by command line: %v, want %v", found, want)
	}
	for value, expect := range map[string][]Process{mark: {want}, mark + "0": nil, "": nil} {
		found, err := ProcessesWithEnv("BERTH_TEST", value)
		must(t, err)
		if !slices.Equal(found, expect) {
			t.Errorf("by environment %q: %v, want %v", value, found, expect)
		}
	}
	must(t, cmd.Process.Kill())
	must(t, want.Wait(context.Background()))
	found, err = ProcessesWithEnv("BERTH_TEST", mark)
	must(t, err)
	if len(found) > 0 {
		t.Errorf("a zombie was found: %v", found)
	}
}

func TestStartTime(t *testing.T) {
	stat := "7 (a) S 1 (b) ) R 1 " + strings.Repeat("0 ", 17) + "4711 0\n"
	if start, err := startTime(stat); err != nil || start != 4711 {
		t.Errorf("start %d, %v", start, err)
	}
}

func FuzzStartTime(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	must(f, err)
	f.Add(string(own))
	f.Add("")
	f.Add("1 (x) R")
	f.Fuzz(func(t *testing.T, stat string) {
		if start, err := startTime(stat); err != nil && start != 0 {
			t.Errorf("start %d with %v", start, err)
		}
	})
}

// A leader whose other threads run on is not a dead process.
func TestEndedIsWholeProcess(t *testing.T) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	must(t, err)
	defer unix.Close(fd)
	if ended(fd) {
		t.Error("this process has ended")
	}
}

// Only processes that where allows are read.
func TestFindProcessesWhere(t *testing.T) {
	mark := fmt.Sprintf("200%d.5", os.Getpid())
	inside, outside := exec.Command("sleep", mark), exec.Command("sleep", mark)
	outside.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	start(t, inside)
	start(t, outside)
	want, err := ProcessOf(inside.Process.Pid)
	must(t, err)
	ours, err := InOurNamespaces()
	must(t, err)
	read := 0
	found, err := FindProcesses(func(cmdline []string) bool {
		read++
		return slices.Equal(cmdline, []string{"sleep", mark})
	}, ours, func(pid int) bool { return pid == want.PID || pid == outside.Process.Pid })
	must(t, err)
	if !slices.Equal(found, []Process{want}) || read != 1 {
		t.Errorf("found %v of %d that were read, want %v", found, read, want)
	}
}
