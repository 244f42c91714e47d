package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

func TestStats(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		tag := testkit.Name("stats")
		p := c.Pod(t, func(p *cri.PodSandboxConfig) { p.Labels = map[string]string{"stats": tag} })
		busy := p.Container(t, busybox, []string{"sh", "-c", "dd if=/dev/zero of=/file bs=1k count=2000 2>/dev/null; while :; do :; done"},
			func(c *cri.ContainerConfig) {
				c.Labels = map[string]string{"stats": tag}
				c.Linux.Resources = &cri.LinuxContainerResources{CpuQuota: 20000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20}
			})
		ended := p.Container(t, busybox, []string{"true"}, func(c *cri.ContainerConfig) { c.Labels = map[string]string{"stats": tag} })
		ended.Exited(t)

		var last *cri.ContainerStats
		testkit.Until(t, 30*time.Second, func(ctx context.Context) string {
			got, err := c.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: busy.ID})
			if err != nil {
				return err.Error()
			}
			last = got.Stats
			if last.Cpu.GetUsageNanoCores().GetValue() == 0 || last.WritableLayer.GetUsedBytes().GetValue() < 2_000_000 {
				return fmt.Sprintf("no rate or no layer yet: %v", last)
			}
			return ""
		})
		if last.Attributes.GetId() != busy.ID || last.Attributes.Metadata.GetName() != busy.Config.Metadata.Name || last.Attributes.Labels["stats"] != tag {
			t.Errorf("attributes: %v", last.Attributes)
		}
		if last.Cpu.UsageCoreNanoSeconds.GetValue() == 0 || last.Cpu.Timestamp == 0 || last.Memory.GetWorkingSetBytes().GetValue() == 0 || last.Memory.UsageBytes.GetValue() == 0 {
			t.Errorf("usage: %v", last)
		}
		if available := last.Memory.AvailableBytes.GetValue(); available == 0 || available > 64<<20 {
			t.Errorf("available %d of a limit of 64 MiB", available)
		}

		list, err := c.ListContainerStats(t.Context(), &cri.ListContainerStatsRequest{Filter: &cri.ContainerStatsFilter{LabelSelector: map[string]string{"stats": tag}}})
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, s := range list.Stats {
			found = found || s.Attributes.Id == busy.ID
		}
		if !found {
			t.Errorf("list: %v", list)
		}

		pod, err := c.PodSandboxStats(t.Context(), &cri.PodSandboxStatsRequest{PodSandboxId: p.ID})
		if err != nil {
			t.Fatal(err)
		}
		linux := pod.Stats.GetLinux()
		if pod.Stats.Attributes.GetId() != p.ID || linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || linux.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
			t.Errorf("pod: %v", pod.Stats)
		}
		if n := linux.GetNetwork(); n.GetDefaultInterface().GetName() != "eth0" || n.DefaultInterface.RxBytes == nil {
			t.Errorf("network: %v", n)
		}
		if linux.GetProcess().GetProcessCount().GetValue() == 0 || len(linux.GetContainers()) == 0 {
			t.Errorf("pod: %v", linux)
		}
		pods, err := c.ListPodSandboxStats(t.Context(), &cri.ListPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{LabelSelector: map[string]string{"stats": tag}}})
		if err != nil || len(pods.Stats) != 1 || pods.Stats[0].Attributes.Id != p.ID {
			t.Errorf("pods: %v, %v", pods, err)
		}

		_, err = c.ContainerStats(t.Context(), &cri.ContainerStatsRequest{ContainerId: "0123abc"})
		testkit.WantCode(t, err, codes.NotFound, "0123abc")
		_, err = c.PodSandboxStats(t.Context(), &cri.PodSandboxStatsRequest{PodSandboxId: "0123abc"})
		testkit.WantCode(t, err, codes.NotFound, "0123abc")
	})
}

// Files that come and go make the walk of a layer fail, which is nobody else's
// matter.
func TestStatsOfContainersWhoseFilesVanish(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		tag := testkit.Name("vanish")
		p := c.Pod(t, func(p *cri.PodSandboxConfig) { p.Labels = map[string]string{"stats": tag} })
		const churn = "mkdir /d; while :; do for i in 1 2 3 4 5 6 7 8 9; do : >/d/$i; done; rm /d/*; done"
		for range 4 {
			p.Container(t, busybox, []string{"sh", "-c", churn}, func(c *cri.ContainerConfig) {
				c.Labels = map[string]string{"stats": tag}
				c.Linux.Resources = &cri.LinuxContainerResources{CpuQuota: 20000, CpuPeriod: 100000}
			})
		}
		list, err := c.ListContainerStats(t.Context(), &cri.ListContainerStatsRequest{Filter: &cri.ContainerStatsFilter{LabelSelector: map[string]string{"stats": tag}}})
		if err != nil || len(list.Stats) != 4 {
			t.Errorf("containers: %v, %v", list, err)
		}
		pods, err := c.ListPodSandboxStats(t.Context(), &cri.ListPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{LabelSelector: map[string]string{"stats": tag}}})
		if err != nil || len(pods.Stats) != 1 || len(pods.Stats[0].Linux.Containers) != 4 {
			t.Errorf("pods: %v, %v", pods, err)
		}
		if _, err := c.ImageFsInfo(t.Context(), &cri.ImageFsInfoRequest{}); err != nil {
			t.Error(err)
		}
	})
}
