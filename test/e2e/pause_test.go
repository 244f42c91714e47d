package e2e

import (
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// A handler whose shim wants a sandbox container: pods work as any others, it is
// no container to clients, and the pod is no longer ready when it ends.
func TestSandboxContainer(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		if strings.HasSuffix(t.Name(), "-berth") || strings.HasSuffix(t.Name(), "-runc") {
			c = c.WithHandler("paused")
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
	})
}
