package serve

import (
	"maps"

	"github.com/opencontainers/cgroups"
)

// swapMax is the file of cgroup v2 that limits swap alone.
const swapMax = "memory.swap.max"

// sayNoSwap has systemd know of a container without swap. libcontainer writes
// that zero to the cgroup's file only, and systemd puts its own value, none or
// the one before, in its place when it is reloaded. A key that the client gave
// stays. It is for cgroup v2.
func sayNoSwap(r *cgroups.Resources) {
	if _, given := r.Unified[swapMax]; given || !withoutSwap(r) {
		return
	}
	unified := maps.Clone(r.Unified)
	if unified == nil {
		unified = map[string]string{}
	}
	unified[swapMax] = "0"
	r.Unified = unified
}

// unsayNoSwap takes back what sayNoSwap set, before other limits are set.
func unsayNoSwap(r *cgroups.Resources) {
	if !withoutSwap(r) || r.Unified[swapMax] != "0" {
		return
	}
	r.Unified = maps.Clone(r.Unified)
	delete(r.Unified, swapMax)
}

// withoutSwap: the limit of v1's kind is that of memory and swap together.
func withoutSwap(r *cgroups.Resources) bool { return r.Memory > 0 && r.MemorySwap == r.Memory }
