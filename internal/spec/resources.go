package spec

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pidsMax is the one key of unified that cgroup v1 has as well.
const pidsMax = "pids.max"

func (b *builder) resources() error {
	warnings, err := merge(b.spec.Linux.Resources, b.in.Container.GetLinux().GetResources(), b.in.Kernel)
	b.warnings = append(b.warnings, warnings...)
	if err != nil {
		return fmt.Errorf("linux.resources.%w", err)
	}
	return nil
}

// ResourcesUpdate gives current with the values of r that are not zero put
// over it; current is not changed. oom_score_adj is the process's own and set
// at its start, so r's is not looked at.
func ResourcesUpdate(current *specs.LinuxResources, r *runtime.LinuxContainerResources, k Kernel) (*specs.LinuxResources, []string, error) {
	out := &specs.LinuxResources{}
	if current != nil {
		data, err := json.Marshal(current)
		if err != nil {
			return nil, nil, fmt.Errorf("resources of the container: %w", err)
		}
		if err := json.Unmarshal(data, out); err != nil {
			return nil, nil, fmt.Errorf("resources of the container: %w", err)
		}
	}
	warnings, err := merge(out, r, k)
	if err != nil {
		return nil, nil, fmt.Errorf("linux.%w", err)
	}
	return out, warnings, nil
}

// merge puts what r sets over out.
func merge(out *specs.LinuxResources, r *runtime.LinuxContainerResources, k Kernel) (warnings []string, err error) {
	if r == nil {
		return nil, nil
	}
	mergeCPU(out, r)
	warnings = mergeMemory(out, r, k)
	more, err := mergeHugepages(out, r.GetHugepageLimits(), k)
	if err != nil {
		return nil, err
	}
	return append(warnings, more...), mergeUnified(out, r.GetUnified(), k)
}

func mergeCPU(out *specs.LinuxResources, r *runtime.LinuxContainerResources) {
	cpu := specs.LinuxCPU{}
	if out.CPU != nil {
		cpu = *out.CPU
	}
	if shares := uint64(r.GetCpuShares()); shares != 0 {
		cpu.Shares = &shares
	}
	if quota := r.GetCpuQuota(); quota != 0 {
		cpu.Quota = &quota
	}
	if period := uint64(r.GetCpuPeriod()); period != 0 {
		cpu.Period = &period
	}
	if cpus := r.GetCpusetCpus(); cpus != "" {
		cpu.Cpus = cpus
	}
	if mems := r.GetCpusetMems(); mems != "" {
		cpu.Mems = mems
	}
	if cpu != (specs.LinuxCPU{}) {
		out.CPU = &cpu
	}
}

// mergeMemory: a limit without one for swap means no swap, as both peers and
// the kubelet have it. A swap limit set before is kept while it is valid.
func mergeMemory(out *specs.LinuxResources, r *runtime.LinuxContainerResources, k Kernel) (warnings []string) {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if limit == 0 && swap == 0 {
		return nil
	}
	memory := specs.LinuxMemory{}
	if out.Memory != nil {
		memory = *out.Memory
	}
	noSwap := memory.Swap == nil || memory.Limit != nil && *memory.Swap == *memory.Limit
	if limit != 0 {
		memory.Limit = &limit
		if swap == 0 && (noSwap || *memory.Swap >= 0 && *memory.Swap < limit) {
			swap = limit
		}
	}
	switch {
	case swap == 0:
	case k.SwapAccounting:
		memory.Swap = &swap
	case memory.Limit == nil || swap != *memory.Limit:
		warnings = append(warnings, fmt.Sprintf("memory_swap_limit_in_bytes: %d is not applied: the kernel does not account swap", swap))
	}
	out.Memory = &memory
	return warnings
}

// mergeHugepages: the kubelet sends a limit for each page size of the node,
// zero where the pod asks for none; without the controller that is harmless.
func mergeHugepages(out *specs.LinuxResources, limits []*runtime.HugepageLimit, k Kernel) (warnings []string, err error) {
	for i, l := range limits {
		switch {
		case len(k.HugePages) == 0 && l.GetLimit() > 0:
			warnings = append(warnings, fmt.Sprintf("hugepage_limits[%d]: %d of %s is not applied: there is no hugetlb cgroup controller", i, l.GetLimit(), l.GetPageSize()))
		case len(k.HugePages) == 0:
		case !slices.Contains(k.HugePages, l.GetPageSize()):
			return nil, fmt.Errorf("hugepage_limits[%d].page_size: %s: the node has %s: %w", i, Shown(l.GetPageSize()), strings.Join(k.HugePages, ", "), errdefs.ErrInvalidArgument)
		default:
			out.HugepageLimits = slices.DeleteFunc(out.HugepageLimits, func(old specs.LinuxHugepageLimit) bool { return old.Pagesize == l.GetPageSize() })
			out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: l.GetPageSize(), Limit: l.GetLimit()})
		}
	}
	return warnings, nil
}

func mergeUnified(out *specs.LinuxResources, unified map[string]string, k Kernel) error {
	if len(unified) == 0 {
		return nil
	}
	if k.CgroupVersion == 2 {
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		maps.Copy(out.Unified, unified)
		return nil
	}
	for key, value := range unified {
		if key != pidsMax {
			return fmt.Errorf("unified[%q]: the node has cgroup v1, where only %s can be set this way: %w", key, pidsMax, errdefs.ErrInvalidArgument)
		}
		limit, err := strconv.ParseInt(value, 10, 64)
		if value == "max" {
			limit, err = -1, nil
		}
		if err != nil || limit < -1 {
			return fmt.Errorf("unified[%q]: %s is neither a number nor max: %w", key, Shown(value), errdefs.ErrInvalidArgument)
		}
		out.Pids = &specs.LinuxPids{Limit: &limit}
	}
	return nil
}

// ResourcesStatus is what ContainerStatus reports of a container that runs by s.
func ResourcesStatus(s *specs.Spec) *runtime.LinuxContainerResources {
	out := &runtime.LinuxContainerResources{}
	if s.Process != nil {
		out.OomScoreAdj = int64(deref(s.Process.OOMScoreAdj))
	}
	if s.Linux == nil || s.Linux.Resources == nil {
		return out
	}
	r := s.Linux.Resources
	if cpu := r.CPU; cpu != nil {
		out.CpuShares, out.CpuPeriod = int64(deref(cpu.Shares)), int64(deref(cpu.Period))
		out.CpuQuota, out.CpusetCpus, out.CpusetMems = deref(cpu.Quota), cpu.Cpus, cpu.Mems
	}
	if memory := r.Memory; memory != nil {
		out.MemoryLimitInBytes, out.MemorySwapLimitInBytes = deref(memory.Limit), deref(memory.Swap)
	}
	for _, l := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, &runtime.HugepageLimit{PageSize: l.Pagesize, Limit: l.Limit})
	}
	out.Unified = maps.Clone(r.Unified)
	return out
}

func deref[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}
