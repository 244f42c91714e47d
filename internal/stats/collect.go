package stats

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Spec is what a container was asked to be.
type Spec struct {
	Created, Started time.Time
	Resources        *runtime.LinuxContainerResources
}

// The kernel's defaults, for what is not set.
const (
	defaultPeriod = 100_000
	defaultShares = 1024
)

// AddSpec adds what is known without a look.
func (s *Sheet) AddSpec(p Spec) {
	s.add(lastSeen, uint64(time.Now().Unix()))
	s.add(created, uint64(p.Created.Unix()))
	if !p.Started.IsZero() {
		s.add(started, uint64(p.Started.Unix()))
	}
	r := p.Resources
	orDefault := func(v, otherwise int64) uint64 {
		if v <= 0 {
			v = otherwise
		}
		return uint64(v)
	}
	s.add(specCPUPeriod, orDefault(r.GetCpuPeriod(), defaultPeriod))
	if r.GetCpuQuota() > 0 {
		s.add(specCPUQuota, uint64(r.GetCpuQuota()))
	}
	s.add(specCPUShares, orDefault(r.GetCpuShares(), defaultShares))
	s.add(specMemoryLimit, orDefault(r.GetMemoryLimitInBytes(), 0))
	s.add(specMemoryReservation, 0) // the CRI has none
	s.add(specMemorySwapLimit, orDefault(r.GetMemorySwapLimitInBytes(), 0))
}

// AddFileSystem adds the use of the writable layer, which was found at that
// time, and the file system that it is on.
func (s *Sheet) AddFileSystem(fs FileSystem, used uint64, at time.Time) {
	s.add(fsInodesFree, fs.FreeInodes, fs.Device)
	s.add(fsInodes, fs.Inodes, fs.Device)
	s.add(fsLimit, fs.Bytes, fs.Device)
	s.addAt(fsUsage, at.UnixNano(), used, fs.Device)
}

// AddNetwork adds the traffic of the network namespace pinned at netns.
// ErrNotFound: there is no namespace.
func (r *Reader) AddNetwork(s *Sheet, netns string) error {
	links, err := r.links.of(netns)
	if err != nil {
		return err
	}
	for _, l := range links {
		s.add(networkReceivedBytes, l.received.bytes, l.name)
		s.add(networkReceivedPackets, l.received.packets, l.name)
		s.add(networkReceivedDropped, l.received.dropped, l.name)
		s.add(networkReceivedErrors, l.received.errors, l.name)
		s.add(networkSentBytes, l.sent.bytes, l.name)
		s.add(networkSentPackets, l.sent.packets, l.name)
		s.add(networkSentDropped, l.sent.dropped, l.name)
		s.add(networkSentErrors, l.sent.errors, l.name)
	}
	return nil
}

// AddPod adds what a pod's cgroup counts: the pod's processor time, memory,
// pressure, processes and threads. They are more than those of its containers,
// which AddContainer has counted, by what the pod's own cgroup is charged for.
// ErrNotFound: the cgroup is gone.
func (r *Reader) AddPod(s *Sheet, pod Cgroup, below []Count) error {
	err := r.collect(pod, s, collector.pod)
	if errdefs.IsNotFound(err) {
		return err
	}
	n, failed := r.count(pod, below)
	if failed == nil {
		s.add(processes, n.Processes)
		s.add(threads, n.Tasks)
	}
	return errors.Join(err, failed)
}

// AddContainer adds what a container's cgroup counts. limited says whether it
// has a processor limit. What was added before an error stays. ErrNotFound: the
// cgroup is gone.
func (r *Reader) AddContainer(s *Sheet, of Cgroup, limited bool) (n Count, err error) {
	err = r.collect(of, s, func(c collector) (err error) {
		n, err = c.container(limited)
		return err
	})
	return n, err
}

func (r *Reader) collect(of Cgroup, s *Sheet, read func(collector) error) error {
	before := s.mark()
	err := r.look(of.ID, of.Path, func(one reading) error {
		s.reset(before)
		return read(collector{reading: one, Reader: r, s: s})
	})
	if err != nil {
		return fmt.Errorf("metrics of %s: cgroup %s: %w", of.ID, of.Path, err)
	}
	return nil
}

// A collector fills a sheet from one cgroup. What is not there is left out.
type collector struct {
	reading
	*Reader
	s *Sheet
}

func (c collector) container(limited bool) (n Count, err error) {
	if err := c.cpu(); err != nil {
		return n, err // ErrNotFound: there is no cgroup
	}
	counted := func() (err error) {
		n, err = c.pids()
		return err
	}
	parts := []func() error{c.memory, c.memoryEvents, c.pressures, counted, c.io, c.hugePages}
	if limited {
		parts = append(parts, c.throttling)
	}
	return n, c.each(parts)
}

func (c collector) pod() error {
	if err := c.cpu(); err != nil {
		return err
	}
	return c.each([]func() error{c.podMemory, c.pressures})
}

// each calls all parts; the file of one may be missing or be damaged without
// harm to the others. It returns the first error.
func (c collector) each(parts []func() error) (first error) {
	for _, part := range parts {
		if err := part(); err != nil && !isGone(err) && first == nil {
			first = err
		}
	}
	return first
}

const (
	microsecond = 1_000_000     // a second's
	nanosecond  = 1_000_000_000 // a second's
	// userHZ is the unit of cpuacct.stat, a second's; Linux has no other.
	userHZ = 100
)

// cpu adds processor time. ErrNotFound: there is no cgroup.
func (c collector) cpu() error {
	var total, user, system uint64
	if c.v2 {
		wanted := []field{{name: "usage_usec", value: &total}, {name: "user_usec", value: &user}, {name: "system_usec", value: &system}}
		if err := c.fields(c.b, fileCPU, wanted); err != nil {
			return cpuError(err)
		}
		total, user, system = total/microsecond, user/microsecond, system/microsecond
	} else {
		nanoseconds, err := c.number(c.b, fileCPU)
		if err != nil {
			return cpuError(err)
		}
		if err := c.fields(c.b, fileCPUTimes, []field{{name: "user", value: &user}, {name: "system", value: &system}}); err != nil {
			return cpuError(err)
		}
		total, user, system = nanoseconds/nanosecond, user/userHZ, system/userHZ
	}
	c.s.add(cpuUser, user)
	c.s.add(cpuSystem, system)
	c.s.add(cpuTotal, total, "total")
	return nil
}

// throttling adds what a processor limit has done.
func (c collector) throttling() error {
	f, times, unit := fileThrottling, [2]string{"throttled_time", "burst_time"}, uint64(nanosecond)
	if c.v2 {
		f, times, unit = fileCPU, [2]string{"throttled_usec", "burst_usec"}, microsecond
	}
	var periods, throttled, held, bursts, burst uint64
	err := c.fields(c.b, f, []field{
		{name: "nr_periods", value: &periods}, {name: "nr_throttled", value: &throttled}, {name: times[0], value: &held},
		{name: "nr_bursts", value: &bursts}, {name: times[1], value: &burst},
	})
	if err != nil {
		return err
	}
	c.s.add(cfsPeriods, periods)
	c.s.add(cfsThrottledPeriods, throttled)
	c.s.add(cfsThrottledSeconds, held/unit)
	c.s.add(cfsBurstPeriods, bursts)
	c.s.add(cfsBurstSeconds, burst/unit)
	return nil
}

func (c collector) readMemory() (memory, error) {
	if c.v2 {
		return c.unifiedMemory()
	}
	return c.v1Memory()
}

func (c collector) podMemory() error {
	m, err := c.readMemory()
	if err != nil {
		return err
	}
	c.addMemory(m)
	return nil
}

// addMemory adds what there is of pods and containers.
func (c collector) addMemory(m memory) {
	c.s.add(memoryUsage, m.usage)
	c.s.add(memoryWorkingSet, m.workingSet())
	c.s.add(memoryRSS, m.rss)
	c.s.add(memoryCache, m.cache)
	if m.hasSwap {
		c.s.add(memorySwap, m.swap)
	}
	c.s.add(memoryFailures, m.faults, "pgfault", "hierarchy")
	c.s.add(memoryFailures, m.majorFaults, "pgmajfault", "hierarchy")
}

func (c collector) memory() error {
	m, err := c.readMemory()
	if err != nil {
		return err
	}
	c.addMemory(m)
	c.s.add(memoryFailures, m.ownFaults, "pgfault", "container")
	c.s.add(memoryFailures, m.ownMajorFaults, "pgmajfault", "container")
	c.s.add(memoryMapped, m.mapped)
	c.s.add(memoryActiveFile, m.activeFile)
	c.s.add(memoryInactiveFile, m.inactiveFile)
	c.s.add(memoryActiveAnon, m.activeAnon)
	c.s.add(memoryInactiveAnon, m.inactiveAnon)
	c.s.add(memoryDirty, m.dirty)
	c.s.add(memoryWriteback, m.writeback)
	c.s.add(memoryRefaultFile, m.refaultFile)
	c.s.add(memoryRefaultAnon, m.refaultAnon)
	if c.v2 {
		c.s.add(memoryKernel, m.kernel)
		c.s.add(memoryScanned, m.scanned)
		c.s.add(memoryStolen, m.stolen)
		c.s.add(memoryAnonHuge, m.anonHuge)
		c.s.add(memoryFileHuge, m.fileHuge)
		c.s.add(memoryShmemHuge, m.shmemHuge)
	} else {
		err = c.addNumber(memoryKernel, fileKernel)
	}
	if err != nil {
		return err
	}
	return c.addNumber(memoryPeak, fileMemoryPeak) // Linux before 5.19 has none on v2
}

// addNumber adds the number in a file, if the file is there.
func (c collector) addNumber(m metric, f file, labels ...string) error {
	v, err := c.number(c.b, f)
	if isGone(err) {
		return nil
	}
	if err == nil {
		c.s.add(m, v, labels...)
	}
	return err
}

// memoryEvents adds how often limits were met, and what that led to.
func (c collector) memoryEvents() error {
	var high, most, kills uint64
	if err := c.fields(c.b, fileOOM, []field{{name: "high", value: &high}, {name: "max", value: &most}, {name: "oom_kill", value: &kills}}); err != nil {
		return err
	}
	c.s.add(oomEvents, kills)
	if !c.v2 {
		return c.addNumber(memoryHits, fileMemoryHits)
	}
	c.s.add(memoryHits, most) // v2's own name for it
	c.s.add(memoryHighEvents, high)
	c.s.add(memoryMaxEvents, most)
	return nil
}

func (c collector) pressures() error {
	if !c.Reader.pressure {
		return nil
	}
	stalls := [...]struct{ stalled, waiting metric }{{cpuStalled, cpuWaiting}, {memoryStalled, memoryWaiting}, {ioStalled, ioWaiting}}
	for i, m := range stalls {
		p, ok, err := c.reading.pressure(fileCPUPressure + file(i))
		if err != nil {
			return err
		}
		if ok {
			c.s.add(m.stalled, p.full.total/microsecond)
			c.s.add(m.waiting, p.some.total/microsecond)
		}
	}
	return nil
}

// pids adds threads, processes and what these have open.
func (c collector) pids() (n Count, err error) {
	counted := false
	if n.Tasks, counted, err = c.tasks(); err != nil {
		return n, err
	}
	if counted {
		c.s.add(threads, n.Tasks)
	}
	limit, err := c.number(c.b, filePidsLimit)
	switch {
	case err == nil && limit >= unlimited:
		c.s.add(threadsLimit, 0)
	case err == nil:
		c.s.add(threadsLimit, limit)
	case !isGone(err):
		return n, err
	}
	data, err := c.read(c.b, fileProcs)
	if err != nil {
		return n, err
	}
	pids := bytes.Fields(data)
	n.Processes = uint64(len(pids))
	c.s.add(processes, n.Processes)
	open := inventories.Get().(*inventory)
	defer inventories.Put(open)
	open.reset()
	for _, pid := range pids {
		open.add(pid)
	}
	c.s.add(openFiles, open.files)
	if open.complete() {
		c.s.add(openSockets, open.sockets)
	}
	if len(pids) > 0 {
		if limit, ok := openFilesLimit(pids[0]); ok {
			c.s.add(softLimits, limit, "max_open_files")
		}
	}
	return n, nil
}

// io adds what went to and from devices.
func (c collector) io() error {
	data, err := c.read(c.b, fileIO)
	if err != nil {
		return err
	}
	if c.v2 {
		all, err := parseIO(data)
		for _, t := range all {
			c.transfer(t)
		}
		return err
	}
	bytesOf, err := parseBlkio(data)
	if err != nil {
		return err
	}
	for _, a := range bytesOf {
		c.blkio(a)
		c.byOperation(a, fsReadBytes, fsWrittenBytes)
	}
	if len(bytesOf) == 0 {
		return nil // as most: nor has it read or written anything
	}
	if data, err = c.read(c.b, fileIOCount); err != nil {
		return err
	}
	counts, err := parseBlkio(data)
	for _, a := range counts {
		c.byOperation(a, fsReads, fsWrites)
	}
	return err
}

func (c collector) byOperation(a amount, read, write metric) {
	switch a.operation {
	case "Read":
		c.s.add(read, a.value, c.devices.name(a.device))
	case "Write":
		c.s.add(write, a.value, c.devices.name(a.device))
	}
}

func (c collector) blkio(a amount) {
	major, minor, _ := strings.Cut(a.device, ":")
	c.s.add(blkioUsage, a.value, c.devices.name(a.device), major, minor, a.operation)
}

func (c collector) transfer(t transfer) {
	name := c.devices.name(t.device)
	c.blkio(amount{t.device, "Read", t.readBytes})
	c.blkio(amount{t.device, "Write", t.writtenBytes})
	c.s.add(fsReadBytes, t.readBytes, name)
	c.s.add(fsReads, t.reads, name)
	c.s.add(fsWrittenBytes, t.writtenBytes, name)
	c.s.add(fsWrites, t.writes, name)
	if t.hasCost {
		for i, v := range t.cost {
			c.s.add(fsCostUsage+metric(i), v/microsecond, name)
		}
	}
}

// hugePages adds huge pages by their size.
func (c collector) hugePages() error {
	for i, size := range c.pageSizes {
		f := fileHuge + file(i*hugeFiles)
		if err := c.addNumber(hugeUsageBytes, f+hugeUsage, size); err != nil {
			return err
		}
		if err := c.addNumber(hugePeakBytes, f+hugePeak, size); err != nil {
			return err
		}
		if !c.v2 {
			if err := c.addNumber(hugeFailures, f+hugeHits, size); err != nil {
				return err
			}
			continue
		}
		var hits uint64
		err := c.fields(c.b, f+hugeHits, []field{{name: "max", value: &hits}})
		if err != nil && !isGone(err) {
			return err
		}
		if err == nil {
			c.s.add(hugeFailures, hits, size)
		}
	}
	return nil
}
