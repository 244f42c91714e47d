// Package stats reads what pods and containers use: processor, memory, swap,
// pressure and processes from cgroup files, traffic from their network
// namespace.
//
// Nothing is read but when asked for, and each figure once: a container costs
// a handful of small files, whatever the number of containers. All a Reader
// keeps is each cgroup's last processor time, from which the next reading
// makes a rate; that of cgroups which are no more is dropped as others come.
//
// A Reader is safe for concurrent use. The Assemble functions are pure.
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
	// Tasks and Processes are counted for a pod only. Tasks are processes and their threads, which a limit on pids counts; 0
	// without the pids controller. Processes are those of the cgroup and,
	// where it has none itself, those of the cgroups below it.
	Tasks, Processes uint64
}

// A Reader reads cgroups.
type Reader struct {
	cgroups *host.Cgroups
	v2      bool
	// Whether the kernel has pressure figures (PSI), and a hierarchy that
	// shows them: v2 or, in the hybrid layout, the additional tree.
	pressure bool
	rates    rates
}

// New returns a Reader for the machine's cgroups. exists tells whether there is
// still something of an ID that was given to Container or Pod; it returns at
// once.
func New(c *host.Cgroups, exists func(id string) bool) *Reader {
	r := &Reader{cgroups: c, v2: c.Version() == 2, rates: rates{last: map[string]sample{}, exists: exists}}
	if root := c.Dir("", "/"); root != "" {
		b := borrow()
		defer b.giveBack()
		_, err := b.read(filepath.Join(root, "cpu.pressure"))
		r.pressure = err == nil // a kernel started with psi=0 has the files but no figures
	}
	return r
}

// Container returns what the cgroup uses; id names it for the rate of
// processor use, which the first reading does not have. ErrNotFound: the
// cgroup is gone.
func (r *Reader) Container(id, cgroup string) (*Usage, error) {
	b := borrow()
	defer b.giveBack()
	read := r.v1
	if r.v2 {
		read = r.unified
	}
	u, err := read(b, cgroup)
	if err != nil {
		return nil, fmt.Errorf("usage of %s: cgroup %s: %w", id, cgroup, err)
	}
	u.CPU.UsageNanoCores = r.rates.next(id, u.CPU.UsageCoreNanoSeconds.Value, time.Now())
	if r.pressure {
		if err := r.readPressure(b, cgroup, u); err != nil {
			return nil, fmt.Errorf("usage of %s: cgroup %s: %w", id, cgroup, err)
		}
	}
	return u, nil
}

// Pod is Container for a pod's cgroup, with its tasks and processes counted.
func (r *Reader) Pod(id, cgroup string) (*Usage, error) {
	u, err := r.Container(id, cgroup)
	if err != nil {
		return nil, err
	}
	b := borrow()
	defer b.giveBack()
	if err := r.processes(b, cgroup, u); err != nil {
		return nil, fmt.Errorf("usage of %s: processes of cgroup %s: %w", id, cgroup, err)
	}
	return u, nil
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

// memory holds the figures from which both versions make their usage.
type memory struct {
	usage, inactiveFile, rss, faults, majorFaults uint64
	limit                                         uint64 // unlimited: none
}

// unlimited is above every limit that means something: v1 shows none as the
// largest number of pages, in bytes.
const unlimited = 1 << 62

// criUsage works out the working set and what is available as cAdvisor and the
// kubelet do: cached files not used lately are free to take.
func (m memory) criUsage(at int64) *runtime.MemoryUsage {
	workingSet := m.usage - min(m.usage, m.inactiveFile)
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

func swapUsage(usage, limit uint64, at int64) *runtime.SwapUsage {
	u := &runtime.SwapUsage{Timestamp: at, SwapUsageBytes: value(usage)}
	if limit < unlimited {
		u.SwapAvailableBytes = value(limit - min(limit, usage))
	}
	return u
}
