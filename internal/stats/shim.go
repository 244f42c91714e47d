package stats

import (
	"fmt"
	"time"

	stats1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	stats2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
)

// Shim makes the usage of a container from what its shim says of it, in the
// terms of either version of cgroups: for containers in a kernel or a machine
// of their own, whose cgroup on this machine has nothing in it. limit is of the
// container's memory, 0 for none, for shims that do not tell.
func (r *Reader) Shim(id string, metrics any, limit uint64) (*Usage, error) {
	at := now()
	u := &Usage{}
	m := memory{limit: unlimited}
	switch said := metrics.(type) {
	case *stats1.Metrics:
		u.CPU = cpuUsage(said.GetCPU().GetUsage().GetTotal(), at)
		v1 := said.GetMemory()
		m.usage, m.inactiveFile = v1.GetUsage().GetUsage(), v1.GetTotalInactiveFile()
		m.rss, m.faults, m.majorFaults = v1.GetTotalRSS(), v1.GetTotalPgFault(), v1.GetTotalPgMajFault()
		m.limit = limited(v1.GetUsage().GetLimit(), limit)
	case *stats2.Metrics:
		u.CPU = cpuUsage(1000*said.GetCPU().GetUsageUsec(), at)
		v2 := said.GetMemory()
		m.usage, m.inactiveFile = v2.GetUsage(), v2.GetInactiveFile()
		m.rss, m.faults, m.majorFaults = v2.GetAnon(), v2.GetPgfault(), v2.GetPgmajfault()
		m.limit = limited(v2.GetUsageLimit(), limit)
	default:
		return nil, fmt.Errorf("usage of %s: its shim tells it as %T, which is not known: %w", id, metrics, errdefs.ErrNotImplemented)
	}
	u.Memory = m.criUsage(at)
	u.CPU.UsageNanoCores = r.rates.next(id, u.CPU.UsageCoreNanoSeconds.Value, time.Now())
	return u, nil
}

// limited is the lower of two limits, of which either may be 0 for none.
func limited(said, asked uint64) uint64 {
	low := uint64(unlimited)
	for _, limit := range []uint64{said, asked} {
		if limit > 0 {
			low = min(low, limit)
		}
	}
	return low
}
