package e2e

import (
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// A limit is a file of a cgroup and what is to be in it, which differ between
// the versions of cgroups.
type limit struct{ controller, v1, want1, v2, want2 string }

func (l limit) check(t *testing.T, cgroup string) {
	t.Helper()
	file, want := l.v1, l.want1
	if testkit.CgroupV2() {
		file, want = l.v2, l.want2
	}
	text, err := os.ReadFile(testkit.CgroupFile(l.controller, cgroup, file))
	if err != nil {
		t.Error(err)
	}
	if got := strings.TrimSpace(string(text)); got != want {
		t.Errorf("%s is %s, want %s", file, got, want)
	}
}

func TestResources(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ctr := sleeper(t, c.Pod(t), func(c *cri.ContainerConfig) {
			c.Linux.Resources = &cri.LinuxContainerResources{
				CpuShares: 333, CpuQuota: 40000, CpuPeriod: 50000, CpusetCpus: "0", CpusetMems: "0",
				MemoryLimitInBytes: 64 << 20, OomScoreAdj: 500,
			}
		})
		for _, l := range []limit{
			{"cpu", "cpu.shares", "333", "cpu.weight", "42"}, {"cpu", "cpu.cfs_quota_us", "40000", "cpu.max", "40000 50000"},
			{"cpu", "cpu.cfs_period_us", "50000", "cpu.max", "40000 50000"}, {"cpuset", "cpuset.cpus", "0", "cpuset.cpus", "0"},
			{"memory", "memory.limit_in_bytes", "67108864", "memory.max", "67108864"},
		} {
			l.check(t, ctr.Cgroup())
		}
		if got := ctr.Exec(t, "cat", "/proc/1/oom_score_adj"); got != "500\n" {
			t.Errorf("oom_score_adj %s", got)
		}
	})
}

// A pod's cgroup that berth makes is limited as the pod asks; one that was there
// is its maker's.
func TestPodResources(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		set := func(c *cri.PodSandboxConfig) {
			c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 333, CpuQuota: 40000, CpuPeriod: 50000, MemoryLimitInBytes: 64 << 20}
		}
		there := func(c *cri.PodSandboxConfig) {
			set(c)
			testkit.MakeCgroup(t, "cpu", c.Linux.CgroupParent)
		}
		for _, tc := range []struct {
			set  func(*cri.PodSandboxConfig)
			want []limit
		}{
			{set, []limit{{"cpu", "cpu.shares", "333", "cpu.weight", "42"}, {"cpu", "cpu.cfs_quota_us", "40000", "cpu.max", "40000 50000"}}},
			{there, []limit{{"cpu", "cpu.shares", "1024", "cpu.weight", "100"}, {"cpu", "cpu.cfs_quota_us", "-1", "cpu.max", "max 100000"}}},
		} {
			p := c.Pod(t, tc.set)
			sleeper(t, p)
			for _, l := range tc.want {
				l.check(t, p.Config.Linux.CgroupParent)
			}
		}
	})
}

// Without CAP_SYS_RESOURCE, as here, a lower score cannot be had; the pod runs
// all the same.
func TestOOMScoreBelowOurOwn(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ctr := sleeper(t, c.Pod(t), func(c *cri.ContainerConfig) {
			c.Linux.Resources = &cri.LinuxContainerResources{OomScoreAdj: -997}
		})
		ctr.Exec(t, "true")
	})
}

func TestUpdateContainerResources(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		set := func(c *cri.ContainerConfig) {
			c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 256, MemoryLimitInBytes: 64 << 20}
		}
		running := sleeper(t, p, set)
		created, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"sleep", "1000"}, set))
		if err != nil {
			t.Fatal(err)
		}
		for _, ctr := range []*testkit.Container{running, created} {
			_, err := c.UpdateContainerResources(t.Context(), &cri.UpdateContainerResourcesRequest{ContainerId: ctr.ID,
				Linux: &cri.LinuxContainerResources{CpuShares: 512, CpuQuota: 20000, CpuPeriod: 100000, MemoryLimitInBytes: 96 << 20}})
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := created.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, ctr := range []*testkit.Container{running, created} {
			for _, l := range []limit{
				{"cpu", "cpu.shares", "512", "cpu.weight", "59"}, {"cpu", "cpu.cfs_quota_us", "20000", "cpu.max", "20000 100000"},
				{"memory", "memory.limit_in_bytes", "100663296", "memory.max", "100663296"},
			} {
				l.check(t, ctr.Cgroup())
			}
			if r := ctr.Status(t).Resources.GetLinux(); r.GetCpuShares() != 512 || r.GetMemoryLimitInBytes() != 96<<20 {
				t.Errorf("status: %v", r)
			}
		}
		_, err = c.UpdateContainerResources(t.Context(), &cri.UpdateContainerResourcesRequest{ContainerId: running.ID,
			Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: -5}})
		testkit.WantCode(t, err, codes.InvalidArgument, "memory_limit_in_bytes")
		_, err = c.UpdateContainerResources(t.Context(), &cri.UpdateContainerResourcesRequest{ContainerId: running.ID})
		testkit.WantCode(t, err, codes.InvalidArgument, "linux")
		if err := running.Stop(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		_, err = c.UpdateContainerResources(t.Context(), &cri.UpdateContainerResourcesRequest{ContainerId: running.ID, Linux: &cri.LinuxContainerResources{CpuShares: 2}})
		if err == nil {
			t.Error("an exited container was updated")
		}
	})
}

func TestHugepages(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		// There is no hugetlb hierarchy of v1 here; the limit of a kubelet that
		// always sends one must not fail the pod.
		ctr := sleeper(t, p, func(c *cri.ContainerConfig) {
			c.Linux.Resources = &cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 0}}}
		})
		ctr.Exec(t, "true")
	})
}
