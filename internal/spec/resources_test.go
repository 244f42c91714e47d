package spec

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/signal"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/testing/protocmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestResourcesUpdate(t *testing.T) {
	k := Kernel{CgroupVersion: 2, SwapAccounting: true, HugePages: []string{"2MB"}}
	base := func() *specs.LinuxResources {
		return &specs.LinuxResources{
			Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}},
			CPU:     &specs.LinuxCPU{Shares: ptr(uint64(100)), Quota: ptr(int64(5000)), Period: ptr(uint64(100000)), Cpus: "0"},
			Memory:  &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(100))},
			Unified: map[string]string{"memory.high": "90"},
		}
	}
	for name, tc := range map[string]struct {
		r      *runtime.LinuxContainerResources
		kernel func(*Kernel)
		start  func(*specs.LinuxResources)
		want   func(*specs.LinuxResources)
		warns  string
	}{
		"nothing": {r: &runtime.LinuxContainerResources{OomScoreAdj: 5}},
		"nil":     {},
		"cpu": {r: &runtime.LinuxContainerResources{CpuShares: 7, CpuQuota: -1, CpusetMems: "1"},
			want: func(r *specs.LinuxResources) {
				r.CPU.Shares, r.CPU.Quota, r.CPU.Mems = ptr(uint64(7)), ptr(int64(-1)), "1"
			}},
		"memory takes swap along": {r: &runtime.LinuxContainerResources{MemoryLimitInBytes: 300},
			want: func(r *specs.LinuxResources) { r.Memory.Limit, r.Memory.Swap = ptr(int64(300)), ptr(int64(300)) }},
		"memory below swap keeps it": {r: &runtime.LinuxContainerResources{MemoryLimitInBytes: 300},
			start: func(r *specs.LinuxResources) { r.Memory.Swap = ptr(int64(400)) },
			want:  func(r *specs.LinuxResources) { r.Memory.Limit, r.Memory.Swap = ptr(int64(300)), ptr(int64(400)) }},
		"memory above swap raises it": {r: &runtime.LinuxContainerResources{MemoryLimitInBytes: 500},
			start: func(r *specs.LinuxResources) { r.Memory.Swap = ptr(int64(400)) },
			want:  func(r *specs.LinuxResources) { r.Memory.Limit, r.Memory.Swap = ptr(int64(500)), ptr(int64(500)) }},
		"unlimited swap stays": {r: &runtime.LinuxContainerResources{MemoryLimitInBytes: 500},
			start: func(r *specs.LinuxResources) { r.Memory.Swap = ptr(int64(-1)) },
			want:  func(r *specs.LinuxResources) { r.Memory.Limit, r.Memory.Swap = ptr(int64(500)), ptr(int64(-1)) }},
		"swap alone": {r: &runtime.LinuxContainerResources{MemorySwapLimitInBytes: 200},
			want: func(r *specs.LinuxResources) { r.Memory.Swap = ptr(int64(200)) }},
		"swap not accounted": {r: &runtime.LinuxContainerResources{MemoryLimitInBytes: 50, MemorySwapLimitInBytes: 200},
			kernel: func(k *Kernel) { k.SwapAccounting = false },
			start:  func(r *specs.LinuxResources) { r.Memory = nil },
			want:   func(r *specs.LinuxResources) { r.Memory = &specs.LinuxMemory{Limit: ptr(int64(50))} }, warns: "memory_swap_limit"},
		"no swap, not accounted": {r: &runtime.LinuxContainerResources{MemoryLimitInBytes: 50, MemorySwapLimitInBytes: 50},
			kernel: func(k *Kernel) { k.SwapAccounting = false },
			start:  func(r *specs.LinuxResources) { r.Memory = nil },
			want:   func(r *specs.LinuxResources) { r.Memory = &specs.LinuxMemory{Limit: ptr(int64(50))} }},
		"hugepages replace": {r: &runtime.LinuxContainerResources{HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 4}}},
			start: func(r *specs.LinuxResources) {
				r.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}}
			},
			want: func(r *specs.LinuxResources) {
				r.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4}}
			}},
		"unified": {r: &runtime.LinuxContainerResources{Unified: map[string]string{"pids.max": "9"}},
			want: func(r *specs.LinuxResources) { r.Unified["pids.max"] = "9" }},
		"pids on v1": {r: &runtime.LinuxContainerResources{Unified: map[string]string{"pids.max": "max"}},
			kernel: func(k *Kernel) { k.CgroupVersion = 1 },
			want:   func(r *specs.LinuxResources) { r.Pids = &specs.LinuxPids{Limit: ptr(int64(-1))} }},
	} {
		t.Run(name, func(t *testing.T) {
			k, current, before, want := k, base(), base(), base()
			for _, r := range []*specs.LinuxResources{current, before, want} {
				if tc.start != nil {
					tc.start(r)
				}
			}
			if tc.kernel != nil {
				tc.kernel(&k)
			}
			if tc.want != nil {
				tc.want(want)
			}
			got, warnings, err := ResourcesUpdate(current, tc.r, k)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(before, current); diff != "" {
				t.Errorf("what was current is changed:\n%s", diff)
			}
			if all := strings.Join(warnings, "\n"); tc.warns == "" && all != "" || !strings.Contains(all, tc.warns) {
				t.Errorf("warnings %q, want %q", all, tc.warns)
			}
		})
	}
	if _, _, err := ResourcesUpdate(nil, &runtime.LinuxContainerResources{HugepageLimits: []*runtime.HugepageLimit{{PageSize: "5MB"}}}, k); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an unknown page size: got %v", err)
	}
}

// TestResourcesStatus: what was asked for is what is reported.
func TestResourcesStatus(t *testing.T) {
	in := input()
	in.Container.Linux.Resources = &runtime.LinuxContainerResources{
		CpuShares: 10, CpuQuota: 2000, CpuPeriod: 100000, CpusetCpus: "0", CpusetMems: "0", MemoryLimitInBytes: 9, MemorySwapLimitInBytes: 10, OomScoreAdj: 3,
		HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 4}}, Unified: map[string]string{"memory.high": "8"},
	}
	s, _, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(in.Container.Linux.Resources, ResourcesStatus(s), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(&runtime.LinuxContainerResources{}, ResourcesStatus(&specs.Spec{}), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestStopSignal(t *testing.T) {
	for number, name := range runtime.Signal_name {
		if number == 0 {
			continue
		}
		got := StopSignal(&runtime.ContainerConfig{StopSignal: runtime.Signal(number)}, &ocispec.ImageConfig{StopSignal: "SIGQUIT"})
		if _, err := signal.ParseSignal(got); err != nil {
			t.Errorf("%s became %s: %v", name, got, err)
		}
	}
	if got := StopSignal(&runtime.ContainerConfig{StopSignal: runtime.Signal_SIGNAL_SIGRTMINPLUS3}, nil); got != "SIGRTMIN+3" {
		t.Errorf("got %s", got)
	}
	if got := StopSignal(nil, &ocispec.ImageConfig{StopSignal: "3"}); got != "3" {
		t.Errorf("got %s", got)
	}
	if got := StopSignal(nil, nil); got != "SIGTERM" {
		t.Errorf("got %s", got)
	}
}
