package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// supervisors are the names of a daemon's supervisors that run.
func supervisors(t *testing.T, d *testkit.Daemon) []string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue // ended meanwhile
		}
		args := strings.Split(string(cmdline), "\x00")
		if len(args) > 5 && args[1] == "serve" && args[3] == d.State {
			names = append(names, args[5])
		}
	}
	return names
}

// With supervisor = "pod" each pod has one of its own, which ends with it.
func TestSupervisorOfAPod(t *testing.T) {
	if testing.Short() {
		t.Skip("needs real daemons; not with -short")
	}
	d := testkit.StartDaemon(t, testkit.DaemonOptions{Config: map[string]any{
		"runtime.default_handler":           "apart",
		"runtime.handlers.apart.type":       "io.containerd.berth.v1",
		"runtime.handlers.apart.supervisor": "pod",
	}})
	c, err := d.Client()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pull(t.Context(), busybox); err != nil {
		t.Fatal(err)
	}
	if err := c.WarmUp(t.Context(), busybox); err != nil {
		t.Fatal(err)
	}
	of := func(want int) {
		t.Helper()
		testkit.Until(t, 30*time.Second, func(context.Context) string {
			n := 0
			for _, name := range supervisors(t, d) {
				if strings.HasPrefix(name, "p") {
					n++
				}
			}
			if n != want {
				return strconv.Itoa(n) + " pods have a supervisor of their own, want " + strconv.Itoa(want)
			}
			return ""
		})
	}
	of(0) // the first pod's has ended
	one, two := c.Pod(t), c.Pod(t)
	running := one.Container(t, busybox, []string{"sh", "-c", "echo up; sleep 1000"})
	one.Container(t, busybox, []string{"sleep", "1000"})
	two.Container(t, busybox, []string{"sleep", "1000"})
	of(2)
	running.Logged(t, "up")
	if err := d.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := running.Status(t).State; got != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("state %v after a restart", got)
	}
	running.Exec(t, "true")
	of(2)
	for _, p := range []*testkit.Pod{one, two} {
		if err := p.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	of(0)
}
