package vm

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

func resources(r *cri.LinuxContainerResources) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { c.Linux.Resources = r }
}

// files wants a cgroup's files to hold what is said.
func files(t *testing.T, cgroup string, want map[string]string) {
	t.Helper()
	for file, value := range want {
		text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", cgroup, file))
		if err != nil {
			t.Error(err)
		} else if got := strings.TrimSpace(string(text)); got != value {
			t.Errorf("%s is %s, want %s", file, got, value)
		}
	}
}

func TestCgroupFiles(t *testing.T) {
	needsVM(t)
	p := client.Pod(t)
	ctr := p.Container(t, busybox, []string{"sleep", "1000"}, resources(&cri.LinuxContainerResources{
		CpuShares: 512, CpuQuota: 40000, CpuPeriod: 50000, CpusetCpus: "1", CpusetMems: "0",
		MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20,
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
		Unified:        map[string]string{"memory.high": "50331648", "pids.max": "77", "memory.oom.group": "1"},
	}))
	files(t, ctr.Cgroup(), map[string]string{
		"cpu.weight": "59", "cpu.max": "40000 50000", "cpuset.cpus": "1", "cpuset.mems": "0",
		"memory.max": "67108864", "memory.swap.max": "33554432", "memory.high": "50331648", "pids.max": "77",
		"hugetlb.2MB.max": "4194304", "memory.oom.group": "1",
	})
	_, err := client.UpdateContainerResources(t.Context(), &cri.UpdateContainerResourcesRequest{ContainerId: ctr.ID,
		Linux: &cri.LinuxContainerResources{
			CpuShares: 1024, CpuQuota: 20000, CpuPeriod: 100000, CpusetCpus: "0-1", MemoryLimitInBytes: 80 << 20, MemorySwapLimitInBytes: 80 << 20,
			Unified: map[string]string{"memory.high": "max"},
		}})
	if err != nil {
		t.Fatal(err)
	}
	updated := map[string]string{
		"cpu.weight": "100", "cpu.max": "20000 100000", "cpuset.cpus": "0-1", "memory.max": "83886080", "memory.swap.max": "0",
		"memory.high": "max", "pids.max": "77", "hugetlb.2MB.max": "4194304",
	}
	files(t, ctr.Cgroup(), updated)
	plain := p.Container(t, busybox, []string{"sleep", "1000"}, resources(&cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}))
	files(t, plain.Cgroup(), map[string]string{"memory.max": "67108864", "memory.swap.max": "0"})
	// What systemd does not know of must not be lost when it looks again.
	mustSystemctl(t, "daemon-reload")
	files(t, ctr.Cgroup(), updated)
	files(t, plain.Cgroup(), map[string]string{"memory.max": "67108864", "memory.swap.max": "0"})
}

// Without a limit that is hit there is little pressure; a quota makes it.
func TestPressure(t *testing.T) {
	needsVM(t)
	p := client.Pod(t)
	ctr := p.Container(t, busybox, []string{"sh", "-c", "while :; do :; done"},
		resources(&cri.LinuxContainerResources{CpuQuota: 20000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20}))
	testkit.Until(t, 20*time.Second, func(ctx context.Context) string {
		got, err := client.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: ctr.ID})
		if err != nil {
			return err.Error()
		}
		if s := got.Stats; s.Cpu.GetPsi().GetSome().GetTotal() == 0 || s.Memory.GetPsi() == nil || s.Io.GetPsi() == nil || s.Swap == nil {
			return "no pressure, or no figures of it: " + s.String()
		}
		return ""
	})
	pod, err := client.PodSandboxStats(t.Context(), &cri.PodSandboxStatsRequest{PodSandboxId: p.ID})
	if err != nil {
		t.Fatal(err)
	}
	if l := pod.Stats.GetLinux(); l.GetCpu().GetPsi().GetSome().GetTotal() == 0 || l.GetIo().GetPsi() == nil || l.GetProcess().GetProcessCount().GetValue() == 0 {
		t.Errorf("the pod's figures: %v", l)
	}
}

// systemd takes a scope away when its last process has ended; the lack of
// memory is reported all the same, and of the right container.
func TestOOMKilled(t *testing.T) {
	needsVM(t)
	p := client.Pod(t)
	little := resources(&cri.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, MemorySwapLimitInBytes: 16 << 20})
	other := p.Container(t, busybox, []string{"sleep", "1000"})
	for range 2 {
		s := p.Container(t, busybox, []string{"sh", "-c", "x=a; while :; do x=$x$x; done"}, little).Exited(t)
		if s.Reason != "OOMKilled" || s.ExitCode != 137 {
			t.Errorf("got %v", s)
		}
	}
	if err := other.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if s := other.Exited(t); s.Reason != "Error" || s.ExitCode != 137 {
		t.Errorf("the one that was killed by hand: %v", s)
	}
}
