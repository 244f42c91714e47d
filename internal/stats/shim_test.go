package stats

import (
	"testing"

	stats1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	stats2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
)

// What shims say of a container, in either version's terms, gives the same
// usage; what one does not tell is no limit.
func TestShim(t *testing.T) {
	r := &Reader{rates: rates{last: map[string]sample{}, exists: func(string) bool { return true }}}
	for _, tc := range []struct {
		name      string
		metrics   any
		limit     uint64
		available uint64 // 0: not told
	}{
		{"v1", &stats1.Metrics{
			CPU:    &stats1.CPUStat{Usage: &stats1.CPUUsage{Total: 5_000_000}},
			Memory: &stats1.MemoryStat{Usage: &stats1.MemoryEntry{Usage: 300, Limit: 1000}, TotalInactiveFile: 100, TotalRSS: 50},
		}, 0, 800},
		{"v2", &stats2.Metrics{
			CPU:    &stats2.CPUStat{UsageUsec: 5_000},
			Memory: &stats2.MemoryStat{Usage: 300, UsageLimit: 1000, InactiveFile: 100, Anon: 50},
		}, 2000, 800},
		{"limit as asked for", &stats2.Metrics{
			CPU:    &stats2.CPUStat{UsageUsec: 5_000},
			Memory: &stats2.MemoryStat{Usage: 300, InactiveFile: 100, Anon: 50},
		}, 500, 300},
		{"no limit", &stats2.Metrics{
			CPU:    &stats2.CPUStat{UsageUsec: 5_000},
			Memory: &stats2.MemoryStat{Usage: 300, UsageLimit: 1<<63 - 1, InactiveFile: 100, Anon: 50},
		}, 0, 0},
	} {
		u, err := r.Shim(tc.name, tc.metrics, tc.limit)
		must(t, err)
		if u.CPU.UsageCoreNanoSeconds.Value != 5_000_000 || u.CPU.UsageNanoCores != nil || u.Memory.UsageBytes.Value != 300 ||
			u.Memory.WorkingSetBytes.Value != 200 || u.Memory.RssBytes.Value != 50 || u.Memory.AvailableBytes.GetValue() != tc.available {
			t.Errorf("%s: %v, %v", tc.name, u.CPU, u.Memory)
		}
	}
	if u, err := r.Shim("empty", &stats1.Metrics{}, 0); err != nil || u.CPU.UsageCoreNanoSeconds.Value != 0 {
		t.Errorf("a shim that tells nothing: %v, %v", u, err)
	}
	if _, err := r.Shim("other", "text", 0); !errdefs.IsNotImplemented(err) {
		t.Errorf("of a kind that is not known: %v", err)
	}
}
