package serve

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// A container that is to have no swap says so to systemd, until it may have
// some; what the client set stays.
func TestNoSwap(t *testing.T) {
	const limit, more = int64(64), int64(96)
	own := map[string]string{swapMax: "7"}
	for _, tc := range []struct {
		name    string
		r       cgroups.Resources
		update  *specs.LinuxMemory
		created map[string]string
		updated map[string]string
	}{
		{"no limit", cgroups.Resources{}, &specs.LinuxMemory{}, nil, nil},
		{"swap", cgroups.Resources{Memory: limit, MemorySwap: more}, &specs.LinuxMemory{}, nil, nil},
		{"none", cgroups.Resources{Memory: limit, MemorySwap: limit}, &specs.LinuxMemory{}, map[string]string{swapMax: "0"}, map[string]string{swapMax: "0"}},
		{"none, then some", cgroups.Resources{Memory: limit, MemorySwap: limit}, &specs.LinuxMemory{Swap: new(more)}, map[string]string{swapMax: "0"}, map[string]string{}},
		{"some, then none", cgroups.Resources{Memory: limit, MemorySwap: more}, &specs.LinuxMemory{Swap: new(limit)}, nil, map[string]string{swapMax: "0"}},
		{"its own", cgroups.Resources{Memory: limit, MemorySwap: limit, Unified: own}, &specs.LinuxMemory{}, own, own},
	} {
		sayNoSwap(&tc.r)
		if diff := cmp.Diff(tc.created, tc.r.Unified); diff != "" {
			t.Errorf("%s: created: %s", tc.name, diff)
		}
		unsayNoSwap(&tc.r)
		apply(&configs.Config{Cgroups: &cgroups.Cgroup{Resources: &tc.r}}, &specs.LinuxResources{Memory: tc.update})
		sayNoSwap(&tc.r)
		if diff := cmp.Diff(tc.updated, tc.r.Unified); diff != "" {
			t.Errorf("%s: updated: %s", tc.name, diff)
		}
	}
}
