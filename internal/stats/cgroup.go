package stats

import (
	"bytes"
	"fmt"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A reading is one look at the files of one cgroup.
type reading struct {
	*source
	b  *buffer
	at int64
}

// v1 reads a cgroup of the hierarchies of version 1.
func (r reading) v1() (*Usage, error) {
	nanoseconds, err := r.number(r.b, fileCPU)
	if err != nil {
		return nil, cpuError(err)
	}
	u := &Usage{CPU: cpuUsage(nanoseconds, r.at)}
	m, err := r.v1Memory()
	if isGone(err) {
		return u, nil
	}
	if err != nil {
		return nil, err
	}
	u.Memory, u.Swap = m.criUsage(r.at), m.criSwap(r.at)
	return u, nil
}

// v1Memory reads what a v1 hierarchy counts. The figures are those of the
// cgroup and all below it.
func (r reading) v1Memory() (m memory, err error) {
	m = memory{limit: unlimited, swapLimit: unlimited}
	if m.usage, err = r.number(r.b, fileMemory); err != nil {
		return m, err
	}
	limit, swapLimit := uint64(unlimited), uint64(unlimited)
	// In the order of the file.
	wanted := [...]field{
		{name: "pgfault", value: &m.ownFaults},
		{name: "pgmajfault", value: &m.ownMajorFaults},
		{name: "hierarchical_memory_limit", value: &limit},
		{name: "hierarchical_memsw_limit", value: &swapLimit},
		{name: "total_cache", value: &m.cache},
		{name: "total_rss", value: &m.rss},
		{name: "total_mapped_file", value: &m.mapped},
		{name: "total_dirty", value: &m.dirty},
		{name: "total_writeback", value: &m.writeback},
		{name: "total_workingset_refault_anon", value: &m.refaultAnon},
		{name: "total_workingset_refault_file", value: &m.refaultFile},
		{name: "total_swap", value: &m.swap},
		{name: "total_pgfault", value: &m.faults},
		{name: "total_pgmajfault", value: &m.majorFaults},
		{name: "total_inactive_anon", value: &m.inactiveAnon},
		{name: "total_active_anon", value: &m.activeAnon},
		{name: "total_inactive_file", value: &m.inactiveFile},
		{name: "total_active_file", value: &m.activeFile},
	}
	if err := r.fields(r.b, fileMemoryStat, wanted[:]); err != nil {
		return m, err
	}
	m.hasSwap = wanted[11].found
	// Those limits are the lowest up to the root; where one is set, ask for
	// the cgroup's own, which is what counts as its limit.
	if limit < unlimited {
		if m.limit, err = r.number(r.b, fileMemoryLimit); err != nil {
			return m, err
		}
	}
	if m.hasSwap && swapLimit < unlimited && m.limit < unlimited {
		both, err := r.number(r.b, fileSwapLimit)
		if err != nil {
			return m, err
		}
		if both < unlimited {
			m.swapLimit = both - min(both, m.limit)
		}
	}
	return m, nil
}

// unified reads a cgroup of version 2.
func (r reading) unified() (*Usage, error) {
	var microseconds uint64
	if err := r.fields(r.b, fileCPU, []field{{name: "usage_usec", value: &microseconds}}); err != nil {
		return nil, cpuError(err)
	}
	u := &Usage{CPU: cpuUsage(microseconds*1000, r.at)}
	m, err := r.unifiedMemory()
	if isGone(err) {
		return u, nil
	}
	if err != nil {
		return nil, err
	}
	u.Memory, u.Swap = m.criUsage(r.at), m.criSwap(r.at)
	return u, nil
}

func (r reading) unifiedMemory() (m memory, err error) {
	if m.usage, err = r.number(r.b, fileMemory); err != nil {
		return m, err
	}
	if m.limit, err = r.number(r.b, fileMemoryLimit); err != nil {
		return m, err
	}
	wanted := [...]field{
		{name: "anon", value: &m.rss},
		{name: "file", value: &m.cache},
		{name: "kernel", value: &m.kernel},
		{name: "file_mapped", value: &m.mapped},
		{name: "file_dirty", value: &m.dirty},
		{name: "file_writeback", value: &m.writeback},
		{name: "anon_thp", value: &m.anonHuge},
		{name: "file_thp", value: &m.fileHuge},
		{name: "shmem_thp", value: &m.shmemHuge},
		{name: "inactive_anon", value: &m.inactiveAnon},
		{name: "active_anon", value: &m.activeAnon},
		{name: "inactive_file", value: &m.inactiveFile},
		{name: "active_file", value: &m.activeFile},
		{name: "workingset_refault_anon", value: &m.refaultAnon},
		{name: "workingset_refault_file", value: &m.refaultFile},
		{name: "pgscan", value: &m.scanned},
		{name: "pgsteal", value: &m.stolen},
		{name: "pgfault", value: &m.faults},
		{name: "pgmajfault", value: &m.majorFaults},
	}
	if err := r.fields(r.b, fileMemoryStat, wanted[:]); err != nil {
		return m, err
	}
	m.ownFaults, m.ownMajorFaults = m.faults, m.majorFaults
	return m, r.unifiedSwap(&m)
}

// unifiedSwap leaves a kernel that does not count swap as one without.
func (r reading) unifiedSwap(m *memory) error {
	usage, err := r.number(r.b, fileSwap)
	if isGone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	limit, err := r.number(r.b, fileSwapLimit)
	if isGone(err) {
		return nil
	}
	m.swap, m.swapLimit, m.hasSwap = usage, limit, true
	return err
}

// tasks counts the tasks of the cgroup and those below; counted is false where
// the kernel does not.
func (r reading) tasks() (n uint64, counted bool, err error) {
	n, err = r.number(r.b, filePids)
	if isGone(err) {
		return 0, false, nil
	}
	return n, err == nil, err
}

// count counts tasks, and the processes of the cgroup itself, without those
// below. One task, as most have, is one process.
func (r reading) count() (n Count, err error) {
	counted := false
	if n.Tasks, counted, err = r.tasks(); err != nil {
		return n, err
	}
	if counted && n.Tasks <= 1 {
		n.Processes = n.Tasks
		return n, nil
	}
	data, err := r.read(r.b, fileProcs)
	if err != nil && !isGone(err) {
		return n, err
	}
	n.Processes = uint64(bytes.Count(data, []byte{'\n'}))
	return n, nil
}

// pressure reads the pressure on one of processor, memory and I/O; ok is false
// where the kernel does not tell.
func (r reading) pressure(f file) (p pressure, ok bool, err error) {
	data, err := r.read(r.b, f)
	if isGone(err) {
		return p, false, nil
	}
	if err == nil {
		p, err = parsePressure(data)
	}
	if err != nil {
		return p, false, fmt.Errorf("%s: %w", r.all.names[f].name, err)
	}
	return p, true, nil
}

// addPressure adds the pressure figures.
func (r reading) addPressure(u *Usage) error {
	for f := fileCPUPressure; f <= fileIOPressure; f++ {
		p, ok, err := r.pressure(f)
		if err != nil {
			return err
		}
		switch {
		case !ok:
		case f == fileCPUPressure:
			u.CPU.Psi = p.cri()
		case f == fileMemoryPressure && u.Memory != nil:
			u.Memory.Psi = p.cri()
		case f == fileIOPressure:
			u.IO = &runtime.IoUsage{Timestamp: u.CPU.Timestamp, Psi: p.cri()}
		}
	}
	return nil
}
