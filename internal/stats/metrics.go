package stats

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A metric is one of those that kubelets show at /metrics/cadvisor when they
// take them from the runtime (KEP-2371): names, labels and units are cAdvisor's.
// The CRI carries whole numbers, so that seconds are whole.
type metric int

const (
	cpuUser metric = iota
	cpuSystem
	cpuTotal
	cfsPeriods
	cfsThrottledPeriods
	cfsThrottledSeconds
	cfsBurstPeriods
	cfsBurstSeconds

	memoryCache
	memoryRSS
	memoryKernel
	memoryMapped
	memorySwap
	memoryHits
	memoryUsage
	memoryPeak
	memoryWorkingSet
	memoryActiveFile
	memoryInactiveFile
	memoryActiveAnon
	memoryInactiveAnon
	memoryAnonHuge
	memoryShmemHuge
	memoryFileHuge
	memoryFailures
	memoryHighEvents
	memoryMaxEvents
	memoryDirty
	memoryWriteback
	memoryScanned
	memoryStolen
	memoryRefaultFile
	memoryRefaultAnon
	oomEvents

	hugeUsageBytes
	hugePeakBytes
	hugeFailures

	fsInodesFree
	fsInodes
	fsLimit
	fsUsage
	fsReadBytes
	fsReads
	fsWrittenBytes
	fsWrites
	fsCostUsage
	fsCostWait
	fsCostIndebt
	fsCostIndelay
	blkioUsage

	networkReceivedBytes
	networkReceivedPackets
	networkReceivedDropped
	networkReceivedErrors
	networkSentBytes
	networkSentPackets
	networkSentDropped
	networkSentErrors

	processes
	openFiles
	openSockets
	threads
	threadsLimit
	softLimits

	cpuStalled
	cpuWaiting
	memoryStalled
	memoryWaiting
	ioStalled
	ioWaiting

	lastSeen
	created
	started
	specCPUPeriod
	specCPUQuota
	specCPUShares
	specMemoryLimit
	specMemoryReservation
	specMemorySwapLimit
	metricCount
)

// kind is how a metric is described; labels come after the base labels.
type kind struct {
	name, help string
	gauge      bool
	labels     []string
}

// baseLabels are those of every metric. As in cAdvisor, id is the cgroup and
// name the ID of the container or sandbox; container and image are empty in
// those of a pod.
var baseLabels = []string{"id", "name", "image", "pod", "namespace", "container"}

var (
	ofDevice    = []string{"device"}
	ofInterface = []string{"interface"}
	ofPageSize  = []string{"pagesize"}
)

var kinds = [metricCount]kind{
	cpuUser:             {name: "container_cpu_user_seconds_total", help: "Time that processes have run in user space, in whole seconds."},
	cpuSystem:           {name: "container_cpu_system_seconds_total", help: "Time that processes have run in the kernel, in whole seconds."},
	cpuTotal:            {name: "container_cpu_usage_seconds_total", help: "Processor time used, in whole seconds.", labels: []string{"cpu"}},
	cfsPeriods:          {name: "container_cpu_cfs_periods_total", help: "Periods of the processor limit that have passed."},
	cfsThrottledPeriods: {name: "container_cpu_cfs_throttled_periods_total", help: "Periods in which the processor limit was met."},
	cfsThrottledSeconds: {name: "container_cpu_cfs_throttled_seconds_total", help: "Time held back by the processor limit, in whole seconds."},
	cfsBurstPeriods:     {name: "container_cpu_cfs_burst_periods_total", help: "Periods in which saved-up processor time was used."},
	cfsBurstSeconds:     {name: "container_cpu_cfs_burst_seconds_total", help: "Saved-up processor time used, in whole seconds."},

	memoryCache:        {name: "container_memory_cache", help: "Page cache, in bytes.", gauge: true},
	memoryRSS:          {name: "container_memory_rss", help: "Anonymous memory, in bytes.", gauge: true},
	memoryKernel:       {name: "container_memory_kernel_usage", help: "The kernel's memory on its behalf, in bytes.", gauge: true},
	memoryMapped:       {name: "container_memory_mapped_file", help: "Mapped files, in bytes.", gauge: true},
	memorySwap:         {name: "container_memory_swap", help: "Swap used, in bytes.", gauge: true},
	memoryHits:         {name: "container_memory_failcnt", help: "How often the memory limit was met."},
	memoryUsage:        {name: "container_memory_usage_bytes", help: "All memory used, cache included, in bytes.", gauge: true},
	memoryPeak:         {name: "container_memory_max_usage_bytes", help: "The most memory used so far, in bytes.", gauge: true},
	memoryWorkingSet:   {name: "container_memory_working_set_bytes", help: "Memory used without cached files not used lately, in bytes.", gauge: true},
	memoryActiveFile:   {name: "container_memory_total_active_file_bytes", help: "Cached files used lately, in bytes.", gauge: true},
	memoryInactiveFile: {name: "container_memory_total_inactive_file_bytes", help: "Cached files not used lately, in bytes.", gauge: true},
	memoryActiveAnon:   {name: "container_memory_active_anon_bytes", help: "Anonymous memory used lately, in bytes.", gauge: true},
	memoryInactiveAnon: {name: "container_memory_inactive_anon_bytes", help: "Anonymous memory not used lately, in bytes.", gauge: true},
	memoryAnonHuge:     {name: "container_memory_anon_thp_bytes", help: "Anonymous memory in transparent huge pages, in bytes.", gauge: true},
	memoryShmemHuge:    {name: "container_memory_shmem_thp_bytes", help: "Shared memory in transparent huge pages, in bytes.", gauge: true},
	memoryFileHuge:     {name: "container_memory_file_thp_bytes", help: "Cached files in transparent huge pages, in bytes.", gauge: true},
	memoryFailures:     {name: "container_memory_failures_total", help: "Page faults, by type and by scope: of the cgroup alone, or with those below it.", labels: []string{"failure_type", "scope"}},
	memoryHighEvents:   {name: "container_memory_events_high_total", help: "How often memory.high was met."},
	memoryMaxEvents:    {name: "container_memory_events_max_total", help: "How often memory.max was met."},
	memoryDirty:        {name: "container_memory_file_dirty_bytes", help: "Cached files that are changed and not written back, in bytes.", gauge: true},
	memoryWriteback:    {name: "container_memory_file_writeback_bytes", help: "Cached files that are being written back, in bytes.", gauge: true},
	memoryScanned:      {name: "container_memory_pgscan_total", help: "Pages looked at to take memory back."},
	memoryStolen:       {name: "container_memory_pgsteal_total", help: "Pages taken back."},
	memoryRefaultFile:  {name: "container_memory_workingset_refault_file_total", help: "File pages read again after they were taken back."},
	memoryRefaultAnon:  {name: "container_memory_workingset_refault_anon_total", help: "Anonymous pages read again after they were taken back."},
	oomEvents:          {name: "container_oom_events_total", help: "Processes killed for want of memory."},

	hugeUsageBytes: {name: "container_hugetlb_usage_bytes", help: "Huge pages used, in bytes.", gauge: true, labels: ofPageSize},
	hugePeakBytes:  {name: "container_hugetlb_max_usage_bytes", help: "The most huge pages used so far, in bytes.", gauge: true, labels: ofPageSize},
	hugeFailures:   {name: "container_hugetlb_failcnt", help: "How often the limit of huge pages was met.", labels: ofPageSize},

	fsInodesFree:   {name: "container_fs_inodes_free", help: "Free inodes of the file system of the writable layer.", gauge: true, labels: ofDevice},
	fsInodes:       {name: "container_fs_inodes_total", help: "All inodes of the file system of the writable layer.", gauge: true, labels: ofDevice},
	fsLimit:        {name: "container_fs_limit_bytes", help: "Size of the file system of the writable layer, in bytes.", gauge: true, labels: ofDevice},
	fsUsage:        {name: "container_fs_usage_bytes", help: "Size of the writable layer, in bytes.", gauge: true, labels: ofDevice},
	fsReadBytes:    {name: "container_fs_reads_bytes_total", help: "Bytes read.", labels: ofDevice},
	fsReads:        {name: "container_fs_reads_total", help: "Reads.", labels: ofDevice},
	fsWrittenBytes: {name: "container_fs_writes_bytes_total", help: "Bytes written.", labels: ofDevice},
	fsWrites:       {name: "container_fs_writes_total", help: "Writes.", labels: ofDevice},
	fsCostUsage:    {name: "container_fs_io_cost_usage_seconds_total", help: "Time of the device used after the I/O cost model, in whole seconds.", labels: ofDevice},
	fsCostWait:     {name: "container_fs_io_cost_wait_seconds_total", help: "Time waited for it, in whole seconds.", labels: ofDevice},
	fsCostIndebt:   {name: "container_fs_io_cost_indebt_seconds_total", help: "Time in debt, in whole seconds.", labels: ofDevice},
	fsCostIndelay:  {name: "container_fs_io_cost_indelay_seconds_total", help: "Time held back for debts, in whole seconds.", labels: ofDevice},
	blkioUsage:     {name: "container_blkio_device_usage_total", help: "Bytes to and from a device, by operation.", labels: []string{"device", "major", "minor", "operation"}},

	networkReceivedBytes:   {name: "container_network_receive_bytes_total", help: "Bytes received.", labels: ofInterface},
	networkReceivedPackets: {name: "container_network_receive_packets_total", help: "Packets received.", labels: ofInterface},
	networkReceivedDropped: {name: "container_network_receive_packets_dropped_total", help: "Packets dropped when received.", labels: ofInterface},
	networkReceivedErrors:  {name: "container_network_receive_errors_total", help: "Errors of receiving.", labels: ofInterface},
	networkSentBytes:       {name: "container_network_transmit_bytes_total", help: "Bytes sent.", labels: ofInterface},
	networkSentPackets:     {name: "container_network_transmit_packets_total", help: "Packets sent.", labels: ofInterface},
	networkSentDropped:     {name: "container_network_transmit_packets_dropped_total", help: "Packets dropped when sent.", labels: ofInterface},
	networkSentErrors:      {name: "container_network_transmit_errors_total", help: "Errors of sending.", labels: ofInterface},

	processes:    {name: "container_processes", help: "Processes.", gauge: true},
	openFiles:    {name: "container_file_descriptors", help: "Open files of all processes.", gauge: true},
	openSockets:  {name: "container_sockets", help: "Open sockets of all processes.", gauge: true},
	threads:      {name: "container_threads", help: "Processes and their threads.", gauge: true},
	threadsLimit: {name: "container_threads_max", help: "How many processes and threads there may be; 0 is no limit.", gauge: true},
	softLimits:   {name: "container_ulimits_soft", help: "Soft resource limits of the first process.", gauge: true, labels: []string{"ulimit"}},

	cpuStalled:    {name: "container_pressure_cpu_stalled_seconds_total", help: "Time in which all tasks waited for a processor, in whole seconds."},
	cpuWaiting:    {name: "container_pressure_cpu_waiting_seconds_total", help: "Time in which a task waited for a processor, in whole seconds."},
	memoryStalled: {name: "container_pressure_memory_stalled_seconds_total", help: "Time in which all tasks waited for memory, in whole seconds."},
	memoryWaiting: {name: "container_pressure_memory_waiting_seconds_total", help: "Time in which a task waited for memory, in whole seconds."},
	ioStalled:     {name: "container_pressure_io_stalled_seconds_total", help: "Time in which all tasks waited for I/O, in whole seconds."},
	ioWaiting:     {name: "container_pressure_io_waiting_seconds_total", help: "Time in which a task waited for I/O, in whole seconds."},

	lastSeen:              {name: "container_last_seen", help: "When these figures were read, in seconds since 1970.", gauge: true},
	created:               {name: "container_creation_time_seconds", help: "When it was created, in seconds since 1970.", gauge: true},
	started:               {name: "container_start_time_seconds", help: "When it was started, in seconds since 1970.", gauge: true},
	specCPUPeriod:         {name: "container_spec_cpu_period", help: "Period of the processor limit, in microseconds.", gauge: true},
	specCPUQuota:          {name: "container_spec_cpu_quota", help: "Processor time allowed in a period, in microseconds.", gauge: true},
	specCPUShares:         {name: "container_spec_cpu_shares", help: "Share of the processors.", gauge: true},
	specMemoryLimit:       {name: "container_spec_memory_limit_bytes", help: "Memory limit in bytes; 0 is no limit.", gauge: true},
	specMemoryReservation: {name: "container_spec_memory_reservation_limit_bytes", help: "Memory reserved, in bytes; 0 is none.", gauge: true},
	specMemorySwapLimit:   {name: "container_spec_memory_swap_limit_bytes", help: "Limit of memory and swap in bytes; 0 is no limit.", gauge: true},
}

// Descriptors describes every metric there is.
func Descriptors() []*runtime.MetricDescriptor {
	all := make([]*runtime.MetricDescriptor, metricCount)
	for m, k := range kinds {
		all[m] = &runtime.MetricDescriptor{Name: k.name, Help: k.help, LabelKeys: slices.Concat(baseLabels, k.labels)}
	}
	return all
}

// Labels are what the metrics of one pod or container have in common.
type Labels struct{ Cgroup, ID, Image, Pod, Namespace, Container string }

// A Sheet collects the metrics of one pod or container, in the form in which
// they are sent: there are tens of thousands on a full node, and to make a
// message of each, with eight strings, would take longer than to read them.
type Sheet struct {
	base []byte // the base labels
	list []byte // field 2 of PodSandboxMetrics and of ContainerMetrics
}

// Numbers of fields in the CRI's messages, which a test compares.
const (
	fieldID         = 1 // of PodSandboxMetrics and ContainerMetrics
	fieldMetrics    = 2
	fieldContainers = 3 // of PodSandboxMetrics

	fieldName      = 1 // of Metric
	fieldTimestamp = 2
	fieldType      = 3
	fieldLabel     = 4
	fieldValue     = 5

	fieldNumber = 1 // of UInt64Value
)

// Begin empties the sheet for the metrics of another pod or container. Its
// memory is used again.
func (s *Sheet) Begin(l Labels) {
	s.base, s.list = s.base[:0], s.list[:0]
	for _, v := range []string{l.Cgroup, l.ID, l.Image, l.Pod, l.Namespace, l.Container} {
		s.base = appendText(s.base, fieldLabel, strings.ToValidUTF8(v, "\uFFFD"))
	}
}

// AppendContainer appends what was collected as an entry of container_metrics.
func (s *Sheet) AppendContainer(b []byte, id string) []byte {
	size := protowire.SizeTag(fieldID) + protowire.SizeBytes(len(id)) + len(s.list)
	b = protowire.AppendVarint(protowire.AppendTag(b, fieldContainers, protowire.BytesType), uint64(size))
	return append(appendText(b, fieldID, id), s.list...)
}

// AppendPod appends a PodSandboxMetrics of what was collected, and of the
// containers that were appended to containers.
func (s *Sheet) AppendPod(b []byte, id string, containers []byte) []byte {
	b = append(appendText(b, fieldID, id), s.list...)
	return append(b, containers...)
}

// mark and reset drop what was added in between.
func (s *Sheet) mark() int { return len(s.list) }

func (s *Sheet) reset(to int) { s.list = s.list[:to] }

// add adds a metric that was read now, with what its own labels are.
func (s *Sheet) add(m metric, v uint64, labels ...string) {
	s.addAt(m, 0, v, labels...)
}

// addAt adds one that was read earlier, at that time in nanoseconds.
func (s *Sheet) addAt(m metric, at int64, v uint64, labels ...string) {
	name := kinds[m].name
	number := 1 + protowire.SizeVarint(v)
	size := 1 + protowire.SizeBytes(len(name)) + len(s.base) + 1 + protowire.SizeBytes(number)
	for _, l := range labels {
		size += 1 + protowire.SizeBytes(len(l))
	}
	if at != 0 {
		size += 1 + protowire.SizeVarint(uint64(at))
	}
	if kinds[m].gauge {
		size += 2
	}
	b := protowire.AppendTag(s.list, fieldMetrics, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	b = appendText(b, fieldName, name)
	if at != 0 {
		b = protowire.AppendVarint(protowire.AppendTag(b, fieldTimestamp, protowire.VarintType), uint64(at))
	}
	if kinds[m].gauge {
		b = protowire.AppendVarint(protowire.AppendTag(b, fieldType, protowire.VarintType), uint64(runtime.MetricType_GAUGE))
	}
	b = append(b, s.base...)
	for _, l := range labels {
		b = appendText(b, fieldLabel, l)
	}
	b = protowire.AppendVarint(protowire.AppendTag(b, fieldValue, protowire.BytesType), uint64(number))
	s.list = protowire.AppendVarint(protowire.AppendTag(b, fieldNumber, protowire.VarintType), v)
}

func appendText(b []byte, field protowire.Number, text string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), text)
}
