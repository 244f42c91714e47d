package cri

import (
	"strconv"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kernel's limits.
const (
	minQuota, minPeriod, maxPeriod = 1000, 1000, 1_000_000 // microseconds
	maxCPU                         = 1 << 16
	maxUnifiedValue                = 4096
)

// validateResources looks at the limits of a container or a pod. Zero is "not
// specified" everywhere; -1 is "no limit" for CPU quota and swap.
func validateResources(field string, r *runtime.LinuxContainerResources) error {
	if r == nil {
		return nil
	}
	if err := validateCPU(field, r); err != nil {
		return err
	}
	if v := r.GetMemoryLimitInBytes(); v < 0 {
		return invalid(field+".memory_limit_in_bytes", "%d: a limit is not negative; leave it 0 for none", v)
	}
	swap, memory := r.GetMemorySwapLimitInBytes(), r.GetMemoryLimitInBytes()
	if swap < -1 {
		return invalid(field+".memory_swap_limit_in_bytes", "%d: a limit is not negative; -1 is no limit", swap)
	}
	if swap > 0 && swap < memory {
		return invalid(field+".memory_swap_limit_in_bytes", "%d: it counts memory and swap, so it is not below memory_limit_in_bytes, %d", swap, memory)
	}
	if v := r.GetOomScoreAdj(); v < -1000 || v > 1000 {
		return invalid(field+".oom_score_adj", "%d: it is from -1000 to 1000", v)
	}
	if err := validateHugepages(field, r.GetHugepageLimits()); err != nil {
		return err
	}
	return validateUnified(field, r.GetUnified())
}

func validateCPU(field string, r *runtime.LinuxContainerResources) error {
	if v := r.GetCpuShares(); v < 0 {
		return invalid(field+".cpu_shares", "%d: shares are not negative; leave it 0 for the default", v)
	}
	if v := r.GetCpuQuota(); v < -1 || v > 0 && v < minQuota {
		return invalid(field+".cpu_quota", "%d: it is in microseconds, at least %d; -1 is no limit", v, minQuota)
	}
	if v := r.GetCpuPeriod(); v != 0 && (v < minPeriod || v > maxPeriod) {
		return invalid(field+".cpu_period", "%d: it is in microseconds, from %d to %d", v, minPeriod, maxPeriod)
	}
	if v := r.GetCpusetCpus(); !isList(v) {
		return invalid(field+".cpuset_cpus", "%s: give a list of numbers and ranges, like 0-3,8", shown(v))
	}
	if v := r.GetCpusetMems(); !isList(v) {
		return invalid(field+".cpuset_mems", "%s: give a list of numbers and ranges, like 0-1", shown(v))
	}
	return nil
}

// isList tells the kernel's list format (cpuset(7)); "" is not specified.
func isList(s string) bool {
	if s == "" {
		return true
	}
	for part := range strings.SplitSeq(s, ",") {
		low, high, isRange := strings.Cut(part, "-")
		from, ok := cpuNumber(low)
		if !ok {
			return false
		}
		if to, ok := cpuNumber(high); isRange && (!ok || to < from) {
			return false
		}
	}
	return true
}

func cpuNumber(s string) (int, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n < maxCPU
}

func validateHugepages(field string, limits []*runtime.HugepageLimit) error {
	for i, l := range limits {
		size := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(l.GetPageSize(), "KB"), "MB"), "GB")
		if n, err := strconv.ParseUint(size, 10, 32); err != nil || n == 0 || size == l.GetPageSize() {
			return invalid(indexed(field+".hugepage_limits", i)+".page_size", "%s: give a number and KB, MB or GB, like 2MB", shown(l.GetPageSize()))
		}
	}
	return nil
}

// validateUnified wants names of cgroup files: nothing that leaves the cgroup.
func validateUnified(field string, unified map[string]string) error {
	for key, value := range unified {
		if !strings.Contains(key, ".") || strings.HasPrefix(key, ".") ||
			strings.Trim(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._") != "" ||
			strings.HasPrefix(key, "cgroup.") {
			return invalid(field+".unified", "key %s: give the name of a controller's file, like memory.high", shown(key))
		}
		if value == "" || len(value) > maxUnifiedValue || strings.ContainsRune(value, 0) {
			return invalid(field+".unified", "%s: value %s: give what the file is to hold", key, shown(value))
		}
	}
	return nil
}

func indexed(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }
