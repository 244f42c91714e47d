package e2e

import (
	"context"
	"encoding/json"
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
