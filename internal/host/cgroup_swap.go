package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// SwapLimits tells whether the kernel can limit the swap of a cgroup. On v2 a
// file of a cgroup that has the memory controller tells; where none has it,
// one is made for the purpose and removed.
func (c *Cgroups) SwapLimits() (bool, error) {
	if c.layout.version == 1 {
		return isFile(filepath.Join(c.layout.mounts["memory"], "memory.memsw.limit_in_bytes")), nil
	}
	if !slices.Contains(c.layout.controllers, "memory") {
		return false, nil
	}
	// The hierarchy's root has no such file, a container's own has.
	for _, pattern := range []string{"memory.swap.max", "*/memory.swap.max"} {
		if found, err := filepath.Glob(filepath.Join(c.layout.mounts[""], pattern)); err == nil && len(found) > 0 {
			return true, nil
		}
	}
	probe := fmt.Sprintf("/berth-probe-%d", os.Getpid())
	if c.units != nil {
		probe = fmt.Sprintf("berthprobe%d.slice", os.Getpid())
	}
	path, err := c.expand(probe)
	if err == nil {
		err = c.Ensure(probe)
	}
	swap := isFile(filepath.Join(c.Dir("memory", path), "memory.swap.max"))
	if err = errors.Join(err, c.Remove(probe)); err != nil {
		return swap, fmt.Errorf("whether swap can be limited: %w", err)
	}
	return swap, nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
