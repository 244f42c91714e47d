// Package stats reads what pods and containers use: processor, memory, swap,
// pressure and processes from cgroup files, traffic from their network
// namespaces. It gives them as the CRI's statistics (Container, Pod, Network)
// and as the metrics that cAdvisor has (Descriptors, Sheet).
//
// Nothing is read but when asked for, and each figure once: a container costs
// a handful of small files, whatever the number of containers. A Reader keeps
// each cgroup's last processor time, from which the next reading makes a rate,
// and the files of cgroups that are asked for time and again open, a bounded
// number of them; what is of cgroups that are no more is dropped as others
// come.
//
// A Reader is safe for concurrent use; two readings of one cgroup follow each
// other. A Sheet is for one goroutine. The Assemble functions are pure.
package stats

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/host"
)

// Usage is what one cgroup, and all below it, uses. What the kernel does not
// count is nil.
type Usage struct {
	CPU    *runtime.CpuUsage
	Memory *runtime.MemoryUsage
	Swap   *runtime.SwapUsage
	IO     *runtime.IoUsage // pressure; nil where the kernel has none
	// Count is of a pod only: what is in its cgroup and those below it.
	Count
}

// A Reader reads cgroups and network namespaces. Close ends it.
type Reader struct {
	v2 bool
	// Whether the kernel has pressure figures (PSI), and a hierarchy that
	// shows them: v2 or, in the hybrid layout, the additional tree.
	pressure  bool
	pageSizes []string // of the hugetlb controller
	handles   handles
	rates     rates
	links     links
	devices   devices
}

// New returns a Reader for the machine's cgroups. exists tells whether there is
// still something of an ID that was given to Container or Pod; it returns at
// once.
func New(c *host.Cgroups, exists func(id string) bool) *Reader {
	r := &Reader{v2: c.Version() == 2, rates: rates{last: map[string]sample{}, exists: exists}}
	if dir := c.Dir("hugetlb", "/"); dir != "" {
		r.pageSizes = pageSizes("/sys/kernel/mm/hugepages")
	}
	r.handles = handles{cgroups: c, names: fileNames(r.v2, r.pageSizes), limit: handleLimit(), byID: map[string]*source{}, swept: time.Now()}
	if root := c.Dir("", "/"); root != "" {
		b := borrow()
		defer b.giveBack()
		_, err := b.read(filepath.Join(root, "cpu.pressure"))
		r.pressure = err == nil // a kernel started with psi=0 has the files but no figures
	}
	return r
}

// handleLimit is how many files may be held open: a quarter of what the process
// may have, and maxHandles.
func handleLimit() int64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return int64(min(limit.Cur/4, maxHandles))
}

// Close closes what is held open. No call is under way or comes after; twice is
// safe.
func (r *Reader) Close() error {
	r.handles.closeAll()
	return r.links.close()
}

// open returns a look at the files of the cgroup, which id names; the caller
// calls done.
func (r *Reader) open(id, cgroup string) reading {
	return reading{source: r.handles.take(id, cgroup), b: borrow(), at: now()}
}

// done ends a reading that came to err; the files of a cgroup that is no more
// are closed.
func (r *Reader) done(id string, one reading, err error) {
	one.b.giveBack()
	one.release()
	if isGone(err) || errdefs.IsNotFound(err) {
		r.handles.drop(id, one.source)
	}
}

// Container returns what the cgroup uses; id names it for the rate of
// processor use, which the first reading does not have. ErrNotFound: the
// cgroup is gone.
func (r *Reader) Container(id, cgroup string) (*Usage, error) {
	var u *Usage
	err := r.look(id, cgroup, func(one reading) (err error) {
		u, err = r.usage(id, one)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("usage of %s: cgroup %s: %w", id, cgroup, err)
	}
	return u, nil
}

// A Cgroup is that of a pod or container; ID is the pod's or container's.
type Cgroup struct{ ID, Path string }

// A Count is how many tasks and processes there are. Tasks are processes and
// their threads, which a limit on pids counts; 0 without the pids controller.
type Count struct{ Tasks, Processes uint64 }

// Pod is Container for a pod's cgroup, with its tasks and processes counted.
// Below are those of its containers, as Count returns them.
func (r *Reader) Pod(pod Cgroup, below []Count) (*Usage, error) {
	u, err := r.Container(pod.ID, pod.Path)
	if err != nil {
		return nil, err
	}
	if u.Count, err = r.count(pod, below); err != nil {
		return nil, fmt.Errorf("usage of %s: processes of cgroup %s: %w", pod.ID, pod.Path, err)
	}
	return u, nil
}

// Count counts what is in a container's cgroup itself; one that is gone has
// nothing.
func (r *Reader) Count(c Cgroup) (n Count, err error) {
	err = r.look(c.ID, c.Path, func(one reading) (err error) {
		n, err = one.count()
		return err
	})
	if err != nil {
		return n, fmt.Errorf("processes of %s: cgroup %s: %w", c.ID, c.Path, err)
	}
	return n, nil
}

// count counts what is in a pod. The kernel counts tasks, but only lists
// processes, cgroup by cgroup. Where the containers have all the pod's tasks,
// they have all its processes; else the whole tree is looked through.
func (r *Reader) count(pod Cgroup, below []Count) (n Count, err error) {
	counted := false
	err = r.look(pod.ID, pod.Path, func(one reading) (err error) {
		n.Tasks, counted, err = one.tasks()
		return err
	})
	if err != nil {
		return n, err
	}
	var known Count
	for _, c := range below {
		known.Tasks += c.Tasks
		known.Processes += c.Processes
		if c.Tasks > 0 && c.Processes == 0 {
			counted = false // they are in cgroups below
		}
	}
	if counted && known.Tasks == n.Tasks {
		return known, nil
	}
	controller := r.handles.names[fileProcs].controller
	if r.handles.cgroups.Dir(controller, pod.Path) == "" {
		return n, nil
	}
	pids, err := r.handles.cgroups.ProcsIn(controller, pod.Path)
	n.Processes = uint64(len(pids))
	return n, err
}

// look calls read for the cgroup, and once more where the cgroup is gone: it may
// be a new one of the same path, and the files that are held open those of the
// old one.
func (r *Reader) look(id, cgroup string, read func(reading) error) error {
	once := func() (err error) {
		one := r.open(id, cgroup)
		defer func() { r.done(id, one, err) }()
		return read(one)
	}
	err := once()
	if isGone(err) || errdefs.IsNotFound(err) {
		err = once()
	}
	return err
}

func (r *Reader) usage(id string, one reading) (*Usage, error) {
	read := one.v1
	if r.v2 {
		read = one.unified
	}
	u, err := read()
	if err != nil {
		return nil, err
	}
	u.CPU.UsageNanoCores = r.rates.next(id, u.CPU.UsageCoreNanoSeconds.Value, time.Now())
	if !r.pressure {
		return u, nil
	}
	return u, one.addPressure(u)
}

// isGone tells whether an error of reading says that the file or its cgroup is
// not there.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)
}

// cpuError is the error of the file without which a cgroup is not there.
func cpuError(err error) error {
	if isGone(err) {
		return errdefs.ErrNotFound
	}
	return err
}

// now is a timestamp as CRI has them.
func now() int64 { return time.Now().UnixNano() }

func value(v uint64) *runtime.UInt64Value { return &runtime.UInt64Value{Value: v} }

func cpuUsage(nanoseconds uint64, at int64) *runtime.CpuUsage {
	return &runtime.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: value(nanoseconds)}
}

// memory is what the kernel counts of a cgroup's memory, in bytes and events.
// Both versions fill what they have.
type memory struct {
	usage, inactiveFile, rss, faults, majorFaults uint64
	limit                                         uint64 // unlimited: none

	swap, swapLimit uint64 // where hasSwap
	hasSwap         bool

	cache, mapped, kernel, activeFile, activeAnon, inactiveAnon uint64
	dirty, writeback, refaultFile, refaultAnon, scanned, stolen uint64
	anonHuge, fileHuge, shmemHuge                               uint64
	ownFaults, ownMajorFaults                                   uint64 // v1: without the cgroups below
}

// unlimited is above every limit that means something: v1 shows none as the
// largest number of pages, in bytes.
const unlimited = 1 << 62

// workingSet is worked out as cAdvisor and the kubelet do: cached files not used
// lately are free to take.
func (m memory) workingSet() uint64 { return m.usage - min(m.usage, m.inactiveFile) }

func (m memory) criUsage(at int64) *runtime.MemoryUsage {
	workingSet := m.workingSet()
	u := &runtime.MemoryUsage{
		Timestamp:       at,
		WorkingSetBytes: value(workingSet),
		UsageBytes:      value(m.usage),
		RssBytes:        value(m.rss),
		PageFaults:      value(m.faults),
		MajorPageFaults: value(m.majorFaults),
	}
	if m.limit < unlimited {
		u.AvailableBytes = value(m.limit - min(m.limit, workingSet))
	}
	return u
}

// criSwap is nil where swap is not counted.
func (m memory) criSwap(at int64) *runtime.SwapUsage {
	if !m.hasSwap {
		return nil
	}
	u := &runtime.SwapUsage{Timestamp: at, SwapUsageBytes: value(m.swap)}
	if m.swapLimit < unlimited {
		u.SwapAvailableBytes = value(m.swapLimit - min(m.swapLimit, m.swap))
	}
	return u
}
