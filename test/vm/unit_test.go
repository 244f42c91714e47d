package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// ticker is a container whose log shows whether it ran all the time.
func ticker(t *testing.T) *testkit.Container {
	t.Helper()
	ctr := client.Pod(t).Container(t, busybox, []string{"sh", "-c", "i=0; while :; do i=$((i+1)); echo tick $i; sleep 1; done"})
	ctr.Logged(t, "tick 1")
	return ctr
}

// same wants the container as it was before, and its output complete.
func same(t *testing.T, ctr *testkit.Container, before *cri.ContainerStatus) {
	t.Helper()
	now := ctr.Status(t)
	if now.State != cri.ContainerState_CONTAINER_RUNNING || now.StartedAt != before.StartedAt {
		t.Fatalf("the container is not the one of before: %v, was %v\n%s", now, before, journal())
	}
	last := ticks(t, ctr)
	testkit.Until(t, 20*time.Second, func(context.Context) string {
		if n := ticks(t, ctr); n <= last+1 {
			return fmt.Sprintf("its log stands still at %d", n)
		}
		return ""
	})
	ctr.Exec(t, "true")
}

// ticks is the last number in the log, in which none may be missing.
func ticks(t *testing.T, ctr *testkit.Container) int {
	t.Helper()
	n := 0
	for line := range strings.Lines(ctr.Text(t)) {
		i, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "tick ")))
		if err != nil || i != n+1 {
			t.Fatalf("after tick %d comes %q", n, line)
		}
		n = i
	}
	return n
}

// Whatever becomes of the daemon, its containers run on.
func TestUnit(t *testing.T) {
	needsVM(t)
	if got := property(t, "Type"); got != "notify" {
		t.Errorf("type %s", got)
	}
	answers(t)
	ctr := ticker(t)
	before := ctr.Status(t)
	for _, step := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"restart", func(t *testing.T) { mustSystemctl(t, "restart", unit) }},
		{"stop and start", func(t *testing.T) {
			mustSystemctl(t, "stop", unit)
			if got := property(t, "ActiveState"); got != "inactive" {
				t.Errorf("stopped, it is %s", got)
			}
			mustSystemctl(t, "start", unit)
		}},
		{"killed", func(t *testing.T) {
			was := property(t, "NRestarts")
			mustSystemctl(t, "kill", "--kill-whom=main", "--signal=KILL", unit)
			testkit.Until(t, 30*time.Second, func(context.Context) string {
				if now, state := property(t, "NRestarts"), property(t, "ActiveState"); now == was || state != "active" {
					return fmt.Sprintf("%s, restarted %s times", state, now)
				}
				return ""
			})
		}},
		{"stuck, the watchdog looks", func(t *testing.T) {
			// A stopped process is one that hangs. The interval is shorter here.
			if property(t, "WatchdogUSec") == "0" {
				t.Fatal("the unit has no watchdog")
			}
			dir := "/run/systemd/system/berth.service.d"
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dir+"/watchdog.conf", []byte("[Service]\nWatchdogSec=15s\nTimeoutAbortSec=10s\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			mustSystemctl(t, "daemon-reload")
			mustSystemctl(t, "restart", unit)
			was, pid := property(t, "NRestarts"), property(t, "MainPID")
			mustSystemctl(t, "kill", "--kill-whom=main", "--signal=STOP", unit)
			testkit.Until(t, 60*time.Second, func(context.Context) string {
				if now, state := property(t, "MainPID"), property(t, "ActiveState"); now == pid || now == "0" || state != "active" {
					return fmt.Sprintf("%s, process %s, restarted %s times, before %s", state, now, property(t, "NRestarts"), was)
				}
				return ""
			})
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			mustSystemctl(t, "daemon-reload")
			mustSystemctl(t, "restart", unit)
		}},
		{"reinstalled", func(t *testing.T) {
			install := exec.Command("/berth/scripts/install.sh", "install")
			install.Env = append(os.Environ(), "PREFIX=/usr")
			if out, err := install.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			mustSystemctl(t, "restart", unit)
		}},
		{"systemd reloaded", func(t *testing.T) { mustSystemctl(t, "daemon-reload") }},
	} {
		t.Run(step.name, func(t *testing.T) {
			step.do(t)
			answers(t) // at once: it is ready when systemd says so
			same(t, ctr, before)
		})
	}
}

// The supervisor is in a scope of its own, so that nothing systemd does to the
// unit ends it.
func TestSupervisorScope(t *testing.T) {
	needsVM(t)
	ctr := ticker(t)
	found := 0
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !strings.Contains(string(cmdline), "containerd-shim-berth-v1\x00serve") {
			continue
		}
		found++
		cgroup, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(strings.TrimSpace(string(cgroup)), ".scope") || strings.Contains(string(cgroup), unit) {
			t.Errorf("a supervisor is in %s", cgroup)
		}
	}
	if found == 0 {
		t.Error("no supervisor runs")
	}
	if want := ctr.Cgroup(); !strings.HasPrefix(want, "/kubepods.slice/") {
		t.Errorf("the container's cgroup is %s", want)
	}
	if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", ctr.Cgroup())); err != nil {
		t.Error(err)
	}
}

// What doctor says of this machine is right: all is there.
func TestDoctor(t *testing.T) {
	needsVM(t)
	out, err := exec.Command("berth", "doctor").CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
	for _, want := range []string{"cgroup", "apparmor"} {
		if !strings.Contains(strings.ToLower(string(out)), want) {
			t.Errorf("doctor does not tell of %s", want)
		}
	}
}
