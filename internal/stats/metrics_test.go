package stats

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/host"
)

var update = flag.Bool("update", false, "write the golden files")

// sent is the sheet's metrics as a client gets them.
func sent(t testing.TB, s *Sheet) []*runtime.Metric {
	t.Helper()
	got := new(runtime.PodSandboxMetrics)
	must(t, proto.Unmarshal(s.AppendPod(nil, "p", s.AppendContainer(s.AppendContainer(nil, "c"), "d")), got))
	if got.PodSandboxId != "p" || len(got.ContainerMetrics) != 2 || got.ContainerMetrics[1].ContainerId != "d" || len(got.ProtoReflect().GetUnknown()) > 0 {
		t.Fatalf("sent as %v", got)
	}
	if diff := cmp.Diff(got.Metrics, got.ContainerMetrics[0].Metrics, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	return got.ContainerMetrics[1].Metrics
}

// metricsText has a line for each metric, and wants each to be as described.
func metricsText(t testing.TB, s *Sheet) string {
	t.Helper()
	byName := map[string]*runtime.MetricDescriptor{}
	for _, d := range Descriptors() {
		byName[d.Name] = d
	}
	var lines []string
	for _, m := range sent(t, s) {
		d := byName[m.Name]
		if d == nil || len(d.LabelKeys) != len(m.LabelValues) {
			t.Errorf("%v is not as described: %v", m, d)
			continue
		}
		line := m.Name
		for i := len(baseLabels); i < len(m.LabelValues); i++ {
			line += fmt.Sprintf(" %s=%s", d.LabelKeys[i], m.LabelValues[i])
		}
		if diff := cmp.Diff([]string{"/pod/c", "c", "image", "pod", "ns", "name"}, m.LabelValues[:len(baseLabels)]); diff != "" {
			t.Errorf("%s: %s", m.Name, diff)
		}
		if m.Timestamp != 0 {
			line += fmt.Sprintf(" at %d", m.Timestamp)
		}
		lines = append(lines, fmt.Sprintf("%s %s %d", line, m.MetricType, m.Value.GetValue()))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

func newSheet() *Sheet {
	s := new(Sheet)
	s.Begin(Labels{ID: "another"})
	s.add(lastSeen, 1)
	s.Begin(Labels{Cgroup: "/pod/c", ID: "c", Image: "image", Pod: "pod", Namespace: "ns", Container: "name"})
	return s
}

func golden(t *testing.T, name, have string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		must(t, os.WriteFile(file, []byte(have), 0o644))
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if diff := cmp.Diff(string(want), have); diff != "" {
		t.Errorf("%s (-update writes it):\n%s", file, diff)
	}
}

const hugeMounts = `33 30 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
35 30 0:32 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio
36 30 0:33 / /sys/fs/cgroup/hugetlb rw - cgroup cgroup rw,hugetlb
`

// Every file of a recorded tree ends in the metrics that name it.
func TestRecordedMetrics(t *testing.T) {
	for _, test := range []struct{ name, mounts string }{{"v1", v1Mounts + hugeMounts}, {"v2", v2Mounts}} {
		t.Run(test.name, func(t *testing.T) {
			r := New(machine(t, test.mounts, "testdata/"+test.name), always)
			defer func() { must(t, r.Close()) }()
			r.pageSizes = []string{"2MB"}
			r.handles.names = fileNames(r.v2, r.pageSizes)
			s := newSheet()
			n, err := r.AddContainer(s, Cgroup{"c", "/pod/c"}, true)
			must(t, err)
			if n.Tasks == 0 || n.Processes == 0 {
				t.Errorf("count %v", n)
			}
			// The processes of the tree are none of this machine.
			text := metricsText(t, s)
			lines := slices.DeleteFunc(strings.SplitAfter(text, "\n"), func(line string) bool {
				return strings.HasPrefix(line, "container_file_") || strings.HasPrefix(line, "container_sockets") || strings.HasPrefix(line, "container_ulimits")
			})
			golden(t, test.name+".container.metrics", strings.Join(lines, ""))

			s = newSheet()
			must(t, r.AddPod(s, Cgroup{"p", "/pod"}, []Count{n}))
			golden(t, test.name+".pod.metrics", metricsText(t, s))

			s = newSheet()
			if _, err := r.AddContainer(s, Cgroup{"g", "/gone"}, false); !errdefs.IsNotFound(err) || len(s.list) > 0 {
				t.Errorf("a cgroup that is gone: %v, %d bytes", err, len(s.list))
			}
		})
	}
}

// A damaged file hides only what is in it.
func TestDamagedMetrics(t *testing.T) {
	c := machine(t, v2Mounts, "testdata/v2")
	write(t, filepath.Join(c.Dir("", "/pod/c"), "memory.events"), "oom_kill many\n")
	r := New(c, always)
	defer func() { must(t, r.Close()) }()
	s := newSheet()
	if _, err := r.AddContainer(s, Cgroup{"c", "/pod/c"}, false); err == nil || !strings.Contains(err.Error(), "memory.events") {
		t.Errorf("error %v", err)
	}
	text := metricsText(t, s)
	if strings.Contains(text, "container_oom_events_total") || !strings.Contains(text, "container_memory_rss") || !strings.Contains(text, "container_threads ") {
		t.Error(text)
	}
	if strings.Contains(text, "container_cpu_cfs") {
		t.Errorf("without a limit:\n%s", text)
	}
}

func TestSpecAndFileSystem(t *testing.T) {
	s := newSheet()
	s.AddSpec(Spec{
		Created: time.Unix(100, 5), Started: time.Unix(101, 0),
		Resources: &runtime.LinuxContainerResources{CpuQuota: 20000, CpuPeriod: 50000, CpuShares: 2, MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: -1},
	})
	s.AddSpec(Spec{Created: time.Unix(7, 0)})
	s.AddFileSystem(FileSystem{Device: "/dev/vda", Bytes: 1000, Inodes: 100, FreeInodes: 10}, 5, time.Unix(0, 9))
	lines := strings.SplitAfter(metricsText(t, s), "\n")
	golden(t, "spec.metrics", strings.Join(slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, "container_last_seen") }), ""))
}

func TestDescriptors(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range Descriptors() {
		if seen[d.Name] || !strings.HasPrefix(d.Name, "container_") || d.Help == "" {
			t.Errorf("%v", d)
		}
		seen[d.Name] = true
		if slices.Compare(d.LabelKeys[:len(baseLabels)], baseLabels) != 0 {
			t.Errorf("%s: labels %v", d.Name, d.LabelKeys)
		}
		if total := strings.HasSuffix(d.Name, "_total"); total && kinds[slices.IndexFunc(kinds[:], func(k kind) bool { return k.name == d.Name })].gauge && d.Name != "container_fs_inodes_total" {
			t.Errorf("%s is a gauge", d.Name)
		}
	}
	// What the kubelet's own cAdvisor shows of containers, and CRI-O and
	// containerd with it.
	for _, name := range []string{
		"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_network_receive_bytes_total",
		"container_fs_usage_bytes", "container_processes", "container_oom_events_total", "container_pressure_io_stalled_seconds_total",
		"container_start_time_seconds", "container_spec_memory_limit_bytes", "container_last_seen", "container_hugetlb_usage_bytes",
	} {
		if !seen[name] {
			t.Errorf("no %s", name)
		}
	}
}

// The numbers by which metrics are encoded are the API's.
func TestFieldNumbers(t *testing.T) {
	for _, test := range []struct {
		m      proto.Message
		fields map[string]protoreflect.FieldNumber
	}{
		{&runtime.Metric{}, map[string]protoreflect.FieldNumber{"name": fieldName, "timestamp": fieldTimestamp, "metric_type": fieldType, "label_values": fieldLabel, "value": fieldValue}},
		{&runtime.UInt64Value{}, map[string]protoreflect.FieldNumber{"value": fieldNumber}},
		{&runtime.PodSandboxMetrics{}, map[string]protoreflect.FieldNumber{"pod_sandbox_id": fieldID, "metrics": fieldMetrics, "container_metrics": fieldContainers}},
		{&runtime.ContainerMetrics{}, map[string]protoreflect.FieldNumber{"container_id": fieldID, "metrics": fieldMetrics}},
	} {
		for name, number := range test.fields {
			if f := test.m.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(name)); f == nil || f.Number() != number {
				t.Errorf("%T.%s: %v, not %d", test.m, name, f, number)
			}
		}
	}
}

// What a name holds that is no UTF-8 makes no response invalid.
func TestLabelsThatAreNoText(t *testing.T) {
	s := new(Sheet)
	s.Begin(Labels{ID: "\xff", Container: "c"})
	s.add(lastSeen, 1)
	if m := sent(t, s); len(m) != 1 || m[0].LabelValues[1] != "\uFFFD" {
		t.Errorf("%v", m)
	}
}

// The open files and sockets are those of the processes.
func TestInventory(t *testing.T) {
	count := func() (files, sockets uint64) {
		var i inventory
		i.add([]byte(fmt.Sprint(os.Getpid())))
		i.add([]byte("0999999999"))
		if !i.complete() {
			t.Error("not complete")
		}
		return i.files, i.sockets
	}
	files, sockets := count()
	var more []net.Listener
	for range 400 { // more than one block of names
		l, err := net.Listen("unix", "")
		must(t, err)
		more = append(more, l)
	}
	files2, sockets2 := count()
	for _, l := range more {
		must(t, l.Close())
	}
	if files2 < files+400 || sockets2 < sockets+400 {
		t.Errorf("%d files, %d sockets, then %d, %d", files, sockets, files2, sockets2)
	}
	var l unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &l))
	want := l.Cur
	pid := []byte(fmt.Sprint(os.Getpid()))
	for _, read := range []func([]byte) (uint64, bool){openFilesLimit, limitFromProc} {
		if limit, ok := read(pid); !ok || limit != want {
			t.Errorf("limit %d %v, want %d", limit, ok, want)
		}
	}
}

// Files are held open within the limit, given back when they are not read any
// more, and those of a cgroup that is no more are not taken for a new one's.
func TestHandles(t *testing.T) {
	c, path := busy(t, "sleep 1000")
	r := New(c, always)
	defer func() { must(t, r.Close()) }()
	read := func() {
		t.Helper()
		_, err := r.Container("id", path)
		must(t, err)
	}
	read()
	full := r.handles.open.Load()
	if full < 3 || full > maxHandles {
		t.Errorf("%d files are open", full)
	}
	read()
	if n := r.handles.open.Load(); n != full {
		t.Errorf("%d files are open, then %d", full, n)
	}
	// A day later something else is read.
	r.handles.swept = time.Now().Add(-24 * time.Hour)
	r.handles.byID["id"].used = r.handles.swept
	if _, err := r.Container("gone", "/berth-stats-test-gone"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if n := r.handles.open.Load(); n != 0 || len(r.handles.byID) != 0 {
		t.Errorf("%d files of %d cgroups are open", n, len(r.handles.byID))
	}
	r.handles.limit = 2
	read()
	read()
	if n := r.handles.open.Load(); n != 2 {
		t.Errorf("%d files are open, more than the limit", n)
	}
	must(t, errors.Join(r.Close(), r.Close()))
	if n := r.handles.open.Load(); n != 0 {
		t.Errorf("%d files are open", n)
	}
}

func TestCgroupMadeAnew(t *testing.T) {
	c, err := host.NewCgroups(host.CgroupfsDriver)
	must(t, err)
	path := fmt.Sprintf("/berth-stats-test-anew-%d", os.Getpid())
	r := New(c, always)
	defer func() { must(t, r.Close()) }()
	for range 3 {
		must(t, c.Ensure(path))
		if _, err := r.Pod(Cgroup{"id", path}, nil); err != nil {
			t.Error(err)
		}
		must(t, c.Remove(path))
	}
	if _, err := r.Pod(Cgroup{"id", path}, nil); !errdefs.IsNotFound(err) {
		t.Errorf("gone: %v", err)
	}
	if n := r.handles.open.Load(); n != 0 {
		t.Errorf("%d files of it are open", n)
	}
}

// The processes of a pod are counted whether or not what is known of its
// containers accounts for all of them.
func TestCount(t *testing.T) {
	c, path := busy(t, "sleep 1000 & sleep 1001 & wait")
	r := New(c, always)
	defer func() { must(t, r.Close()) }()
	testDeadline(t, func() bool {
		n, err := r.Count(Cgroup{"c", path})
		must(t, err)
		return n == Count{3, 3}
	})
	for _, known := range [][]Count{nil, {{1, 1}}, {{Tasks: 3}}} {
		n, err := r.count(Cgroup{"c", path}, known)
		must(t, err)
		if n != (Count{3, 3}) {
			t.Errorf("known %v: %v", known, n)
		}
	}
	if n, err := r.Count(Cgroup{"g", "/berth-stats-test-gone"}); n != (Count{}) || err != nil {
		t.Errorf("gone: %v, %v", n, err)
	}
}

// testDeadline waits for what processes come to do.
func testDeadline(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); {
		if time.Now().After(deadline) {
			t.Fatal("it did not come to that")
		}
	}
}

func FuzzIO(f *testing.F) {
	f.Add([]byte("254:0 rbytes=1 wbytes=2 rios=3 wios=4 cost.usage=5\n"))
	f.Add([]byte("254:0 Read 1\nTotal 1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if all, err := parseIO(data); err != nil && all != nil {
			t.Errorf("%v and %v", all, err)
		}
		if all, err := parseBlkio(data); err != nil && all != nil {
			t.Errorf("%v and %v", all, err)
		}
	})
}
