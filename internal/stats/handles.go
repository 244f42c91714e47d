package stats

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/host"
)

// A file is one of those that are read of a cgroup. What it is called depends
// on the version; two kinds may be one file, as cpu.stat of v2.
type file int

const (
	fileCPU         file = iota // v1: the total; v2: all of them
	fileCPUTimes                // v1 only: user and system
	fileThrottling              // v1 only
	fileMemory                  // what is used now
	fileMemoryLimit             // its limit
	fileMemoryStat
	fileMemoryPeak
	fileMemoryHits // v1 only: how often the limit was met
	fileKernel     // v1 only: the kernel's memory for it
	fileSwap       // v2 only
	fileSwapLimit  // v1: of memory and swap
	fileOOM
	filePids
	filePidsLimit
	fileProcs
	fileIO      // v1: bytes; v2: all
	fileIOCount // v1 only: operations
	fileCPUPressure
	fileMemoryPressure
	fileIOPressure
	fileHuge // the first of those of huge pages: hugeFiles for each size
)

// The files of one size of huge pages, from fileHuge on.
const (
	hugeUsage = iota
	hugePeak  // v1 only
	hugeHits
	hugeFiles
)

// A fileName is where a file is; an empty name is one that is nowhere.
type fileName struct{ controller, name string }

// fileNames are the names of all files by their number.
func fileNames(v2 bool, pageSizes []string) []fileName {
	names := []fileName{
		fileCPU: {"cpuacct", "cpuacct.usage"}, fileCPUTimes: {"cpuacct", "cpuacct.stat"}, fileThrottling: {"cpu", "cpu.stat"},
		fileMemory: {"memory", "memory.usage_in_bytes"}, fileMemoryLimit: {"memory", "memory.limit_in_bytes"},
		fileMemoryStat: {"memory", "memory.stat"}, fileMemoryPeak: {"memory", "memory.max_usage_in_bytes"},
		fileMemoryHits: {"memory", "memory.failcnt"}, fileKernel: {"memory", "memory.kmem.usage_in_bytes"},
		fileSwapLimit: {"memory", "memory.memsw.limit_in_bytes"}, fileOOM: {"memory", "memory.oom_control"},
		filePids: {"pids", "pids.current"}, filePidsLimit: {"pids", "pids.max"}, fileProcs: {"cpuacct", "cgroup.procs"},
		fileIO: {"blkio", "blkio.throttle.io_service_bytes_recursive"}, fileIOCount: {"blkio", "blkio.throttle.io_serviced_recursive"},
		fileHuge: {},
	}
	if v2 {
		names = []fileName{
			fileCPU: {"", "cpu.stat"}, fileMemory: {"", "memory.current"}, fileMemoryLimit: {"", "memory.max"},
			fileMemoryStat: {"", "memory.stat"}, fileMemoryPeak: {"", "memory.peak"}, fileSwap: {"", "memory.swap.current"},
			fileSwapLimit: {"", "memory.swap.max"}, fileOOM: {"", "memory.events"}, filePids: {"", "pids.current"},
			filePidsLimit: {"", "pids.max"}, fileProcs: {"", "cgroup.procs"}, fileIO: {"", "io.stat"}, fileHuge: {},
		}
	}
	// Those of the v2 tree, which is beside the hierarchies in a hybrid layout.
	names[fileCPUPressure], names[fileMemoryPressure], names[fileIOPressure] = fileName{"", "cpu.pressure"}, fileName{"", "memory.pressure"}, fileName{"", "io.pressure"}
	names = names[:fileHuge]
	for _, size := range pageSizes {
		prefix := "hugetlb." + size + "."
		if v2 {
			names = append(names, fileName{"", prefix + "current"}, fileName{}, fileName{"", prefix + "events"})
			continue
		}
		names = append(names, fileName{"hugetlb", prefix + "usage_in_bytes"}, fileName{"hugetlb", prefix + "max_usage_in_bytes"}, fileName{"hugetlb", prefix + "failcnt"})
	}
	return names
}

const (
	// maxHandles bounds how many files are held open; more are opened for each
	// reading. One costs the kernel 4 to 5 KiB.
	maxHandles = 4096
	// handleIdle is how long they are held after their last use. Kubelets ask
	// every ten seconds, Prometheus every minute at the most.
	handleIdle = 2 * time.Minute
)

// handles keeps the files of cgroups open: opening one takes five times as long
// as reading it. What is no more or not read any more is closed as others are
// read.
type handles struct {
	cgroups *host.Cgroups
	names   []fileName
	limit   int64
	open    atomic.Int64

	mu    sync.Mutex // guards what follows; taken before a source's
	byID  map[string]*source
	swept time.Time
}

// A source is the open files of one cgroup.
type source struct {
	all    *handles
	cgroup string
	used   time.Time // guarded by handles.mu

	mu     sync.Mutex // held while it is read
	closed bool
	// fds has of each file its descriptor plus one, 0 where it is not open, -1
	// where it is not there.
	fds []int32
}

// take returns the open files of the cgroup, for the caller alone until it
// calls release.
func (h *handles) take(id, cgroup string) *source {
	for {
		s := h.source(id, cgroup)
		s.mu.Lock()
		if !s.closed {
			return s
		}
		s.mu.Unlock()
	}
}

func (s *source) release() { s.mu.Unlock() }

func (h *handles) source(id, cgroup string) *source {
	now := time.Now()
	h.mu.Lock()
	s := h.byID[id]
	var old []*source
	if s != nil && s.cgroup != cgroup {
		old, s = append(old, s), nil
	}
	if s == nil {
		s = &source{all: h, cgroup: cgroup, fds: make([]int32, len(h.names))}
		h.byID[id] = s
	}
	s.used = now
	if now.Sub(h.swept) >= handleIdle/2 {
		h.swept = now
		maps.DeleteFunc(h.byID, func(_ string, s *source) bool {
			idle := now.Sub(s.used) >= handleIdle
			if idle {
				old = append(old, s)
			}
			return idle
		})
	}
	h.mu.Unlock()
	for _, o := range old {
		o.close()
	}
	return s
}

// drop closes the files of a cgroup that is no more.
func (h *handles) drop(id string, s *source) {
	h.mu.Lock()
	if h.byID[id] == s {
		delete(h.byID, id)
	}
	h.mu.Unlock()
	s.close()
}

func (h *handles) closeAll() {
	h.mu.Lock()
	all := h.byID
	h.byID = map[string]*source{}
	h.mu.Unlock()
	for _, s := range all {
		s.close()
	}
}

// close closes all files. The source is not used any more.
func (s *source) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for i, fd := range s.fds {
		if fd > 0 {
			unix.Close(int(fd - 1)) // of a file that was only read
			s.all.open.Add(-1)
		}
		s.fds[i] = 0
	}
}

// read returns the whole of a file; it is valid until the next read into b.
// An error that isGone tells of says that it is not there.
func (s *source) read(b *buffer, f file) ([]byte, error) {
	switch fd := s.fds[f]; {
	case fd > 0:
		return b.readAll(int(fd - 1))
	case fd < 0:
		return nil, unix.ENOENT
	}
	name := s.all.names[f]
	dir := ""
	if name.name != "" {
		dir = s.all.cgroups.Dir(name.controller, s.cgroup)
	}
	if dir == "" {
		s.fds[f] = -1
		return nil, unix.ENOENT
	}
	fd, err := open(dir + "/" + name.name)
	if errors.Is(err, unix.ENOENT) && f != fileCPU {
		s.fds[f] = -1
	}
	if err != nil {
		return nil, err
	}
	// The list of processes of v1 stays as it was when it was opened.
	hold := name.controller == "" || f != fileProcs
	if hold && s.all.open.Add(1) > s.all.limit {
		s.all.open.Add(-1)
		hold = false
	}
	if !hold {
		defer unix.Close(fd) // of a file that was only read
	} else {
		s.fds[f] = int32(fd) + 1
	}
	return b.readAll(fd)
}

// number reads a file that holds one number, or "max", which is unlimited.
func (s *source) number(b *buffer, f file) (uint64, error) {
	data, err := s.read(b, f)
	if err != nil {
		return 0, err
	}
	n, err := parseNumber(data)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.all.names[f].name, err)
	}
	return n, nil
}

// fields reads wanted lines of a file.
func (s *source) fields(b *buffer, f file, wanted []field) error {
	data, err := s.read(b, f)
	if err != nil {
		return err
	}
	if err := fields(data, wanted); err != nil {
		return fmt.Errorf("%s: %w", s.all.names[f].name, err)
	}
	return nil
}

func parseNumber(data []byte) (uint64, error) {
	for len(data) > 0 && data[len(data)-1] == '\n' {
		data = data[:len(data)-1]
	}
	if string(data) == "max" {
		return unlimited, nil
	}
	return parseUint(data)
}

// parseUint is strconv.ParseUint for digits, without an allocation.
func parseUint(data []byte) (uint64, error) {
	if len(data) == 0 || len(data) > 19 {
		return strconv.ParseUint(string(data), 10, 64)
	}
	var n uint64
	for _, c := range data {
		if c < '0' || c > '9' {
			return strconv.ParseUint(string(data), 10, 64)
		}
		n = 10*n + uint64(c-'0')
	}
	return n, nil
}
