package e2e

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// A handler whose shim wants a sandbox container: pods work as any others, it is
// no container to clients, and the pod is no longer ready when it ends.
func TestSandboxContainer(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		if strings.HasSuffix(t.Name(), "-berth") || strings.HasSuffix(t.Name(), "-runc") {
			c = c.WithHandler("boxed")
		}
		p := c.Pod(t, func(cfg *cri.PodSandboxConfig) {
			cfg.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		})
		ctr := p.Container(t, busybox, []string{"sh", "-c", "echo up; sleep 1000"})
		ctr.Logged(t, "up")
		list, err := c.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: p.ID}})
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Containers) != 1 {
			t.Errorf("containers: %v", list.Containers)
		}
		if ps := ctr.Exec(t, "ps"); !strings.Contains(ps, "pause") || !strings.Contains(ps, "sleep 1000") {
			t.Errorf("processes of the pod:\n%s", ps)
		}
		stats, err := c.ContainerStats(t.Context(), &cri.ContainerStatsRequest{ContainerId: ctr.ID})
		if err != nil || stats.Stats.Memory.GetUsageBytes().GetValue() == 0 {
			t.Errorf("statistics from the shim: %v, %v", stats, err)
		}
		// With the sandbox container the pod ends.
		if err := unix.Kill(sandboxPID(t, p), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		testkit.Until(t, 20*time.Second, func(context.Context) string {
			if s := p.Status(t); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
				return "the pod is " + s.State.String()
			}
			return ""
		})
		ctr.Exited(t)
	})
}

// sandboxPID is the process that holds a pod together.
func sandboxPID(t *testing.T, p *testkit.Pod) int {
	t.Helper()
	resp, err := p.Client().PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ PID int }
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil || info.PID < 2 {
		t.Fatalf("process %d of %s: %v", info.PID, resp.Info["info"], err)
	}
	return info.PID
}

// Pods with a sandbox container outlive the daemon, also one that is killed.
func TestSandboxContainerOutlivesTheDaemon(t *testing.T) {
	if testing.Short() {
		t.Skip("needs real daemons; not with -short")
	}
	handler := "boxed"
	if slices.ContainsFunc(targets, func(t target) bool { return t.client.Handler == gVisor }) {
		handler = gVisor
	}
	d := testkit.StartDaemon(t, testkit.DaemonOptions{GVisor: handler == gVisor, Config: map[string]any{
		"runtime.default_handler":        handler,
		"runtime.handlers.boxed.type":    "io.containerd.runc.v2",
		"runtime.handlers.boxed.sandbox": "container",
	}})
	c := d.Watched(t, busybox)
	p := c.Pod(t)
	ctr := p.Container(t, busybox, []string{"sh", "-c", "trap 'echo last; exit 7' TERM; echo up; while :; do sleep 0.05; done"})
	ctr.Logged(t, "up")
	began := ctr.Status(t).StartedAt
	for _, end := range []func() error{d.Stop, d.Kill} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if err := d.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := p.Status(t); s.State != cri.PodSandboxState_SANDBOX_READY {
			t.Errorf("the pod is %v", s.State)
		}
		if s := ctr.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt != began {
			t.Errorf("the container is %v, started at %d, not %d: %s", s.State, s.StartedAt, began, s.Message)
		}
		ctr.Exec(t, "true")
	}
	if err := ctr.Stop(t.Context(), 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if s := ctr.Exited(t); s.ExitCode != 7 {
		t.Errorf("exit code %d (%s: %s), want 7", s.ExitCode, s.Reason, s.Message)
	}
	ctr.Logged(t, "last")
}
