// Package testkit gives tests the real thing: images, a registry with faults,
// a daemon under test, a CRI client, and the state of the host as text.
//
// Invariants:
//   - A test binary whose TestMain calls Main runs in mount, network and PID
//     namespaces of its own, with a tmpfs at /run, unless the machine is the
//     test's own (see machine.go). Whatever it leaves behind,
//     through a bug or because it was killed, is gone when it ends, and two
//     binaries never meet. Only files and cgroups have no such boundary: what
//     a run that was killed left of them is removed by the next one.
//   - Everything else is named after a Daemon's own temporary directories.
//   - Nothing here sleeps for a fixed time: waits poll for what they want and
//     fail with what they saw last.
//
// Functions that take a testing.TB end the test on failure; those that return
// an error are for TestMain and for what tests share. All are safe for
// concurrent use unless their comment says otherwise.
package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stageEnv says how far into its namespaces a test binary is.
const stageEnv = "BERTH_TESTKIT_STAGE"

// Main is the whole of a TestMain: it runs the tests in namespaces of their
// own and exits. Setup, where not nil, runs before the tests, and what it
// returns after them; an error of either fails the run.
func Main(m *testing.M, setup func() (teardown func() error, err error)) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(playRole(role))
	}
	os.Exit(Enter(func() int { return run(m, setup) }))
}

// Enter runs body in namespaces of its own, as Main does tests, and returns
// its exit code. It starts this binary again with the same arguments, so it
// comes first in main. SIGINT, SIGTERM and SIGQUIT reach body's process, once
// or more, and it alone decides when to end.
func Enter(body func() int) int {
	switch stage := os.Getenv(stageEnv); {
	case OwnMachine():
		if err := sweep(); err != nil {
			fmt.Fprintln(os.Stderr, "testkit:", err)
			return 1
		}
	case stage == "":
		return enterNamespaces()
	case stage == "init":
		return initProcess()
	}
	return body()
}

func run(m *testing.M, setup func() (func() error, error)) int {
	if setup == nil {
		return m.Run()
	}
	teardown, err := setup()
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, "setup:", err)
	} else {
		code = m.Run()
	}
	if teardown != nil {
		if err := teardown(); err != nil {
			fmt.Fprintln(os.Stderr, "teardown:", err)
			code = 1
		}
	}
	return code
}

// enterNamespaces runs this binary again as PID 1 of new namespaces.
func enterNamespaces() int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "this runs real containers in namespaces of its own: run it as root")
		return 1
	}
	// Pdeathsig is sent when the thread ends that started the child.
	runtime.LockOSThread()
	cmd := self("init")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	return wait(cmd)
}

// forward passes signals on to a process that was started.
func forward(signals <-chan os.Signal, to *os.Process) {
	for s := range signals {
		_ = to.Signal(s) // it may be gone already
	}
}

func signals() chan os.Signal {
	ch := make(chan os.Signal, 8)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	return ch
}

// initProcess is PID 1: it makes the namespaces a home, runs the body, and
// reaps what nobody else does. When it ends, the kernel ends the rest.
func initProcess() int {
	if err := furnish(); err != nil {
		fmt.Fprintln(os.Stderr, "testkit:", err)
		return 1
	}
	cmd := self("run")
	caught := signals()
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "testkit:", err)
		return 1
	}
	go forward(caught, cmd.Process)
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			fmt.Fprintln(os.Stderr, "testkit: wait:", err)
			return 1
		case pid == cmd.Process.Pid && status.Exited():
			return status.ExitStatus()
		case pid == cmd.Process.Pid:
			fmt.Fprintln(os.Stderr, "testkit: the process was ended by", status.Signal())
			return 1
		}
	}
}

func furnish() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		// Mounts come in from the host but none goes out.
		{"", "/", "", unix.MS_REC | unix.MS_SLAVE},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"run", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	// Programs look for these; iptables for its lock, CNI for netns.
	return errors.Join(os.MkdirAll("/run/lock", 0o755), sweep())
}

func self(stage string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageEnv+"="+stage)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}

func wait(cmd *exec.Cmd) int {
	caught := signals()
	err := cmd.Start()
	if err == nil {
		go forward(caught, cmd.Process)
		err = cmd.Wait()
	}
	exit := new(exec.ExitError)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "testkit:", err)
	return 1
}

// Poll asks until done returns "" and fails after within, which is Scaled, with
// what it returned last.
func Poll(ctx context.Context, within time.Duration, done func(context.Context) string) error {
	within = Scaled(within)
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	last := ""
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		saw := done(ctx)
		if saw == "" {
			return nil
		}
		if last != "" && ctx.Err() != nil {
			saw = last // the newer one tells of the deadline
		}
		last = saw
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s: %s", within, saw)
		case <-time.After(pause):
		}
	}
}

// Until is Poll for tests.
func Until(t testing.TB, within time.Duration, done func(context.Context) string) {
	t.Helper()
	if err := Poll(t.Context(), within, done); err != nil {
		t.Fatal(err)
	}
}

// RepoRoot is the directory of the module's go.mod.
func RepoRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if _, err := os.Stat(d + "/go.mod"); err == nil {
			return d, nil
		}
	}
	return "", fmt.Errorf("no go.mod above %s", dir)
}
