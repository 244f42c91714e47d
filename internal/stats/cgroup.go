package stats

import (
	"bytes"
	"fmt"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// v1 reads a cgroup of the hierarchies of version 1.
func (r *Reader) v1(b *buffer, cgroup string) (*Usage, error) {
	nanoseconds, err := b.number(r.cgroups.Dir("cpuacct", cgroup) + "/cpuacct.usage")
	if err != nil {
		return nil, cpuError(err)
	}
	at := now()
	u := &Usage{CPU: cpuUsage(nanoseconds, at)}
	if dir := r.cgroups.Dir("memory", cgroup); dir != "" {
		if err := r.v1Memory(b, dir, at, u); err != nil && !isGone(err) {
			return nil, err
		}
	}
	return u, nil
}

func (r *Reader) v1Memory(b *buffer, dir string, at int64, u *Usage) error {
	var m memory
	var err error
	if m.usage, err = b.number(dir + "/memory.usage_in_bytes"); err != nil {
		return err
	}
	data, err := b.read(dir + "/memory.stat")
	if err != nil {
		return err
	}
	limit, swapLimit := uint64(unlimited), uint64(unlimited)
	var swap uint64
	// In the order of the file.
	wanted := [...]field{
		{name: "hierarchical_memory_limit", value: &limit},
		{name: "hierarchical_memsw_limit", value: &swapLimit},
		{name: "total_rss", value: &m.rss},
		{name: "total_swap", value: &swap},
		{name: "total_pgfault", value: &m.faults},
		{name: "total_pgmajfault", value: &m.majorFaults},
		{name: "total_inactive_file", value: &m.inactiveFile},
	}
	if err := fields(data, wanted[:]); err != nil {
		return fmt.Errorf("memory.stat: %w", err)
	}
	hasSwap := wanted[3].found
	// Those limits are the lowest up to the root; where one is set, ask for
	// the cgroup's own, which is what counts as its limit.
	m.limit = unlimited
	if limit < unlimited {
		if m.limit, err = b.number(dir + "/memory.limit_in_bytes"); err != nil {
			return err
		}
	}
	u.Memory = m.criUsage(at)
	if !hasSwap {
		return nil
	}
	allowed := uint64(unlimited)
	if swapLimit < unlimited && m.limit < unlimited {
		both, err := b.number(dir + "/memory.memsw.limit_in_bytes")
		if err != nil {
			return err
		}
		if both < unlimited {
			allowed = both - min(both, m.limit)
		}
	}
	u.Swap = swapUsage(swap, allowed, at)
	return nil
}

// unified reads a cgroup of version 2.
func (r *Reader) unified(b *buffer, cgroup string) (*Usage, error) {
	dir := r.cgroups.Dir("", cgroup)
	data, err := b.read(dir + "/cpu.stat")
	if err != nil {
		return nil, cpuError(err)
	}
	at := now()
	var microseconds uint64
	if err := fields(data, []field{{name: "usage_usec", value: &microseconds}}); err != nil {
		return nil, fmt.Errorf("cpu.stat: %w", err)
	}
	u := &Usage{CPU: cpuUsage(microseconds*1000, at)}
	if err := unifiedMemory(b, dir, at, u); err != nil && !isGone(err) {
		return nil, err
	}
	if err := unifiedSwap(b, dir, at, u); err != nil && !isGone(err) {
		return nil, err
	}
	return u, nil
}

func unifiedMemory(b *buffer, dir string, at int64, u *Usage) error {
	var m memory
	var err error
	if m.usage, err = b.number(dir + "/memory.current"); err != nil {
		return err
	}
	if m.limit, err = b.number(dir + "/memory.max"); err != nil {
		return err
	}
	data, err := b.read(dir + "/memory.stat")
	if err != nil {
		return err
	}
	wanted := [...]field{
		{name: "anon", value: &m.rss},
		{name: "inactive_file", value: &m.inactiveFile},
		{name: "pgfault", value: &m.faults},
		{name: "pgmajfault", value: &m.majorFaults},
	}
	if err := fields(data, wanted[:]); err != nil {
		return fmt.Errorf("memory.stat: %w", err)
	}
	u.Memory = m.criUsage(at)
	return nil
}

func unifiedSwap(b *buffer, dir string, at int64, u *Usage) error {
	usage, err := b.number(dir + "/memory.swap.current")
	if err != nil {
		return err
	}
	limit, err := b.number(dir + "/memory.swap.max")
	if err != nil {
		return err
	}
	u.Swap = swapUsage(usage, limit, at)
	return nil
}

// processes counts tasks and processes. The pids controller may be missing.
func (r *Reader) processes(b *buffer, cgroup string, u *Usage) error {
	controller := "pids"
	dir := r.cgroups.Dir(controller, cgroup)
	if dir == "" {
		controller = "cpuacct"
		if r.v2 {
			controller = ""
		}
		dir = r.cgroups.Dir(controller, cgroup)
	}
	if controller == "pids" {
		tasks, err := b.number(dir + "/pids.current")
		if err != nil && !isGone(err) {
			return err
		}
		u.Tasks = tasks
	}
	data, err := b.read(dir + "/cgroup.procs")
	if err != nil && !isGone(err) {
		return err
	}
	u.Processes = uint64(bytes.Count(data, []byte{'\n'}))
	if u.Processes == 0 && (u.Tasks > 0 || controller != "pids") {
		pids, err := r.cgroups.ProcsIn(controller, cgroup)
		if err != nil {
			return err
		}
		u.Processes = uint64(len(pids))
	}
	return nil
}

// readPressure adds the pressure figures.
func (r *Reader) readPressure(b *buffer, cgroup string, u *Usage) error {
	dir := r.cgroups.Dir("", cgroup)
	for _, kind := range []string{"cpu", "memory", "io"} {
		data, err := b.read(dir + "/" + kind + ".pressure")
		if isGone(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s.pressure: %w", kind, err)
		}
		psi, err := parsePressure(data)
		if err != nil {
			return fmt.Errorf("%s.pressure: %w", kind, err)
		}
		switch {
		case kind == "cpu":
			u.CPU.Psi = psi
		case kind == "memory" && u.Memory != nil:
			u.Memory.Psi = psi
		case kind == "io":
			u.IO = &runtime.IoUsage{Timestamp: u.CPU.Timestamp, Psi: psi}
		}
	}
	return nil
}
