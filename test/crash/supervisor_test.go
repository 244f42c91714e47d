package crash

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// supervisors are the processes that have the daemon's containers.
func supervisors(t *testing.T, d *testkit.Daemon) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue // ended meanwhile
		}
		args := strings.Split(string(cmdline), "\x00")
		if len(args) > 3 && args[1] == "serve" && args[2] == "--state" && args[3] == d.State {
			found = append(found, pid)
		}
	}
	return found
}

func killSupervisors(t *testing.T, d *testkit.Daemon) {
	t.Helper()
	pids := supervisors(t, d)
	if len(pids) == 0 {
		t.Fatal("no supervisor runs")
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Until(t, 20*time.Second, func(ctx context.Context) string {
		for _, now := range supervisors(t, d) {
			for _, pid := range pids {
				if now == pid {
					return fmt.Sprintf("supervisor %d lives", pid)
				}
			}
		}
		return ""
	})
}

// counter writes lines until it is told to end.
const counter = `trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done`

// lines checks that the log has every line once, and returns how many.
func lines(t *testing.T, ctr *testkit.Container) int {
	t.Helper()
	n := 0
	for line := range strings.Lines(ctr.Text(t)) {
		if n++; strings.TrimSpace(line) != fmt.Sprintf("line %d", n) {
			t.Fatalf("line %d of the log is %q", n, line)
		}
	}
	return n
}

// grows waits until the container has written more.
func grows(t *testing.T, ctr *testkit.Container) {
	t.Helper()
	from := lines(t, ctr)
	testkit.Until(t, 30*time.Second, func(context.Context) string {
		if now := lines(t, ctr); now <= from {
			return fmt.Sprintf("the log has %d lines and had %d", now, from)
		}
		return ""
	})
}

// The supervisor is killed under running containers: they live on, nothing of
// their output is lost, and they can be used and ended as before.
func TestSupervisorKilled(t *testing.T) {
	for _, external := range []bool{false, true} {
		t.Run(fmt.Sprintf("external=%t", external), func(t *testing.T) {
			d := testkit.StartDaemon(t, testkit.DaemonOptions{External: external})
			c := d.Watched(t, busybox)
			p := c.Pod(t)
			isolated := c.Pod(t, isolated.pod)
			running := []*testkit.Container{
				p.Container(t, busybox, []string{"sh", "-c", counter}), p.Container(t, busybox, []string{"sh", "-c", counter}),
				isolated.Container(t, busybox, []string{"sh", "-c", counter}),
			}
			for _, ctr := range running {
				testkit.Until(t, 20*time.Second, func(context.Context) string {
					if ctr.Text(t) == "" {
						return "nothing in the log"
					}
					return ""
				})
			}
			for range 2 {
				killSupervisors(t, d)
				for _, ctr := range running {
					grows(t, ctr)
					testkit.Until(t, 30*time.Second, func(ctx context.Context) string {
						res, err := ctr.ExecSync(ctx, "echo", "alive")
						if err != nil || string(res.Stdout) != "alive\n" {
							return fmt.Sprintf("exec: %v, %v", res, err)
						}
						return ""
					})
					if got := ctr.Status(t).State; got != cri.ContainerState_CONTAINER_RUNNING {
						t.Fatalf("state %v", got)
					}
				}
			}
			if err := running[0].Stop(t.Context(), 20*time.Second); err != nil {
				t.Fatal(err)
			}
			if got := running[0].Exited(t); got.ExitCode != 7 {
				t.Errorf("exit code %d (%s: %s), want 7", got.ExitCode, got.Reason, got.Message)
			}
			lines(t, running[0])
			grows(t, running[1])
		})
	}
}

// The supervisor and the daemon are killed together, and a container ends
// before either is back.
func TestSupervisorAndDaemonKilled(t *testing.T) {
	d := testkit.StartDaemon(t, testkit.DaemonOptions{})
	c := d.Watched(t, busybox)
	p := c.Pod(t)
	stays := p.Container(t, busybox, []string{"sh", "-c", counter})
	ends := p.Container(t, busybox, []string{"sh", "-c", "echo $$; trap 'exit 5' TERM; while :; do sleep 0.01; done"})
	grows(t, stays)
	before := supervisors(t, d)
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	killSupervisors(t, d)
	killIn(t, ends)
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := supervisors(t, d); len(now) != 1 || now[0] == before[0] {
		t.Errorf("supervisors %v after %v", now, before)
	}
	grows(t, stays)
	if got := ends.Exited(t); got.Reason != "Unknown" || got.Message == "" || got.ExitCode != 255 {
		t.Errorf("exit code %d, %q: %q; want 255, Unknown, and why", got.ExitCode, got.Reason, got.Message)
	}
	stays.Exec(t, "true")
}

// A container that ends while its supervisor is gone and the daemon is not: the
// daemon kept its pidfd.
func TestEndWithoutSupervisor(t *testing.T) {
	d := testkit.StartDaemon(t, testkit.DaemonOptions{})
	c := d.Watched(t, busybox)
	ctr := c.Pod(t).Container(t, busybox, []string{"sh", "-c", "echo up; trap 'echo last; exit 5' TERM; while :; do sleep 0.01; done"})
	testkit.Until(t, 20*time.Second, func(context.Context) string {
		if !strings.Contains(ctr.Text(t), "up") {
			return "it does not run"
		}
		return ""
	})
	// A supervisor that cannot start, for a while.
	shim := filepath.Join(d.Libexec(), "containerd-shim-berth-v1")
	target, err := os.Readlink(shim)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(shim); err != nil {
		t.Fatal(err)
	}
	killSupervisors(t, d)
	killIn(t, ctr)
	if err := os.Symlink(target, shim); err != nil {
		t.Fatal(err)
	}
	got := ctr.Exited(t)
	if got.ExitCode != 5 {
		t.Errorf("exit code %d, %q: %q; want 5", got.ExitCode, got.Reason, got.Message)
	}
	if text := ctr.Text(t); text != "up\nlast\n" {
		t.Errorf("log %q", text)
	}
}

// killIn has a container end, without asking anybody, and waits until it has.
func killIn(t *testing.T, ctr *testkit.Container) {
	t.Helper()
	var pids []string
	dirs, err := filepath.Glob("/sys/fs/cgroup/pids/*/*/" + ctr.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range append(dirs, glob(t, "/sys/fs/cgroup/*/*/"+ctr.ID)...) {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			t.Fatal(err)
		}
		if pids = strings.Fields(string(data)); len(pids) > 0 {
			break
		}
	}
	if len(pids) == 0 {
		t.Fatalf("container %s has no process", ctr.ID)
	}
	pid, err := strconv.Atoi(pids[0]) // the first is the init
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, 20*time.Second, func(context.Context) string {
		if _, err := os.Stat(filepath.Join("/proc", pids[0])); err == nil {
			return "its init lives"
		}
		return ""
	})
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return found
}
