package stats

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/host"
)

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Println("internal/stats: its tests make cgroups and namespaces; run them as root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

// machine makes the files of a machine: its mounts, and what is in the cgroup
// /pod/c, as recorded.
func machine(t testing.TB, mounts, recorded string) *host.Cgroups {
	t.Helper()
	root := t.TempDir()
	write(t, filepath.Join(root, "proc/self/mountinfo"), mounts)
	if recorded != "" {
		must(t, os.MkdirAll(filepath.Join(root, "sys/fs"), 0o755))
		must(t, os.CopyFS(filepath.Join(root, "sys/fs/cgroup"), os.DirFS(recorded)))
	}
	c, err := host.NewCgroupsAt(root, host.CgroupfsDriver)
	must(t, err)
	return c
}

const (
	v2Mounts = "30 22 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	v1Mounts = `32 30 0:29 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct
34 30 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
38 30 0:35 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
40 30 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`
)

// text renders messages without their timestamps.
func text(messages ...protoadapt.MessageV1) string {
	var out strings.Builder
	for _, m := range messages {
		out.WriteString(render(m))
	}
	return out.String()
}

func render(m protoadapt.MessageV1) string {
	v2 := protoadapt.MessageV2Of(m)
	if !v2.ProtoReflect().IsValid() {
		return "none\n"
	}
	v2 = proto.Clone(v2)
	if f := v2.ProtoReflect().Descriptor().Fields().ByName("timestamp"); f != nil {
		v2.ProtoReflect().Clear(f)
	}
	out := prototext.MarshalOptions{}.Format(v2)
	return strings.Join(strings.Fields(out), " ") + "\n"
}

func usageText(u *Usage) string {
	return text(u.CPU, u.Memory, u.Swap, u.IO) + fmt.Sprintf("tasks=%d processes=%d\n", u.Tasks, u.Processes)
}

func TestRecorded(t *testing.T) {
	for _, test := range []struct{ name, mounts, cgroup, want string }{
		{"v2", v2Mounts, "/pod/c", `usage_core_nano_seconds:{value:1234567000} psi:{Full:{Total:3000 Avg10:0.1 Avg60:0.2 Avg300:0.3} Some:{Total:1212000 Avg10:1.5 Avg60:0.75 Avg300:0.25}}
working_set_bytes:{value:90000000} available_bytes:{value:44217728} usage_bytes:{value:100000000} rss_bytes:{value:70000000} page_faults:{value:5000} major_page_faults:{value:50} psi:{Full:{} Some:{Total:7000}}
swap_available_bytes:{value:600} swap_usage_bytes:{value:400}
psi:{Full:{} Some:{}}
tasks=7 processes=3
`},
		{"v2", v2Mounts, "/pod", `usage_core_nano_seconds:{value:2000000000}
working_set_bytes:{} usage_bytes:{value:10} rss_bytes:{} page_faults:{} major_page_faults:{}
none
none
tasks=8 processes=3
`},
		{"v2-linux6.1", v2Mounts, "/pod/c", `usage_core_nano_seconds:{value:2704729000} psi:{Full:{Total:10508802000 Avg10:54.2 Avg60:13.97 Avg300:3.11} Some:{Total:10509864000 Avg10:54.2 Avg60:13.97 Avg300:3.11}}
working_set_bytes:{value:73728} available_bytes:{value:33480704} usage_bytes:{value:159744} rss_bytes:{value:65536} page_faults:{value:405} major_page_faults:{value:1} psi:{Full:{} Some:{}}
swap_available_bytes:{} swap_usage_bytes:{}
psi:{Full:{Total:117632000 Avg10:0.27 Avg60:0.13 Avg300:0.03} Some:{Total:117632000 Avg10:0.27 Avg60:0.13 Avg300:0.03}}
tasks=1 processes=1
`},
		{"v2-linux6.1", v2Mounts, "/pod", `usage_core_nano_seconds:{value:3405568000} psi:{Full:{Total:13014848000 Avg10:62.47 Avg60:18.16 Avg300:4.14} Some:{Total:13015906000 Avg10:62.47 Avg60:18.16 Avg300:4.14}}
working_set_bytes:{value:81920} usage_bytes:{value:167936} rss_bytes:{value:65536} page_faults:{value:405} major_page_faults:{value:1} psi:{Full:{} Some:{}}
swap_usage_bytes:{}
psi:{Full:{Total:117641000 Avg10:0.18 Avg60:0.12 Avg300:0.03} Some:{Total:117641000 Avg10:0.18 Avg60:0.12 Avg300:0.03}}
tasks=1 processes=1
`},
		{"v1", v1Mounts, "/pod/c", `usage_core_nano_seconds:{value:987654321} psi:{Full:{} Some:{Total:1000}}
working_set_bytes:{value:60000000} available_bytes:{value:7108864} usage_bytes:{value:65000000} rss_bytes:{value:40000000} page_faults:{value:600} major_page_faults:{value:6}
swap_available_bytes:{value:67104768} swap_usage_bytes:{value:4096}
none
tasks=5 processes=2
`},
		{"v1", v1Mounts, "/pod", `usage_core_nano_seconds:{value:1}
working_set_bytes:{value:5} usage_bytes:{value:5} rss_bytes:{} page_faults:{} major_page_faults:{}
none
none
tasks=0 processes=0
`},
	} {
		t.Run(test.name+test.cgroup, func(t *testing.T) {
			r := New(machine(t, test.mounts, "testdata/"+test.name), always)
			u, err := r.Pod(Cgroup{"id", test.cgroup}, nil)
			must(t, err)
			if diff := cmp.Diff(normal(test.want), normal(usageText(u))); diff != "" {
				t.Error(diff)
			}
			if u.CPU.Timestamp <= 0 || u.Memory.Timestamp != u.CPU.Timestamp {
				t.Errorf("timestamps %d, %d", u.CPU.Timestamp, u.Memory.Timestamp)
			}
			if _, err := r.Container("id", "/gone"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "/gone") {
				t.Errorf("a cgroup that is gone: %v", err)
			}
		})
	}
}

// normal evens out the spaces that prototext puts in at random.
func normal(text string) string { return strings.ReplaceAll(text, " ", "") }

func TestDamagedFiles(t *testing.T) {
	for _, test := range []struct{ file, content string }{
		{"cpu.stat", "usage_usec many\n"},
		{"memory.current", "much\n"},
		{"memory.max", "\n"},
		{"memory.stat", "anon -1\n"},
		{"memory.swap.max", "0x10\n"},
		{"pids.current", "1 2\n"},
		{"cpu.pressure", "some avg10\n"},
		{"io.pressure", "full total=-1\n"},
	} {
		t.Run(test.file, func(t *testing.T) {
			c := machine(t, v2Mounts, "testdata/v2")
			write(t, filepath.Join(c.Dir("", "/pod/c"), test.file), test.content)
			if u, err := New(c, always).Pod(Cgroup{"id", "/pod/c"}, nil); err == nil || errdefs.IsNotFound(err) {
				t.Errorf("usage %v, error %v", u, err)
			}
		})
	}
}

func TestRates(t *testing.T) {
	r := rates{last: map[string]sample{}}
	base := time.Now()
	const second = 1_000_000_000
	for i, step := range []struct {
		at    time.Duration
		usage uint64
		want  int64 // -1: none
	}{
		{0, 1 * second, -1},
		{10 * time.Millisecond, 2 * second, -1}, // too short after
		{2 * time.Second, 2 * second, second / 2},
		{2*time.Second + 50*time.Millisecond, 9 * second, second / 2},
		{2*time.Second - 50*time.Millisecond, 1 * second, second / 2}, // a call that was overtaken
		{4 * time.Second, 2 * second, 0},
		{5 * time.Second, 6 * second, 4 * second},
		{6 * time.Second, 1 * second, -1}, // another cgroup
		{7 * time.Second, 2 * second, second},
	} {
		rate := r.next("id", step.usage, base.Add(step.at))
		have := int64(-1)
		if rate != nil {
			have = int64(rate.Value)
		}
		if have != step.want {
			t.Errorf("step %d: rate %d, want %d", i, have, step.want)
		}
	}
	if r.next("other", 5, base) != nil {
		t.Error("another ID has a rate at once")
	}
}

func always(string) bool { return true }

// However many IDs come and go, those that are left are kept and no more than
// as many again.
func TestRatesOfWhatIsNoMore(t *testing.T) {
	current := ""
	r := rates{last: map[string]sample{}, exists: func(id string) bool { return id == "stays" || id == current }}
	base := time.Now()
	r.next("stays", 0, base)
	for i := range 10 * leastPrune {
		current = strconv.Itoa(i)
		r.next(current, 0, base)
	}
	if n := len(r.last); n > leastPrune {
		t.Errorf("%d samples are kept", n)
	}
	if r.next("stays", 1, base.Add(time.Second)) == nil {
		t.Error("what exists has lost its sample")
	}
}

var count atomic.Int64

// busy starts a process that uses the processor and memory, in a cgroup of
// its own.
func busy(t testing.TB, script string) (*host.Cgroups, string) {
	t.Helper()
	c, err := host.NewCgroups(host.CgroupfsDriver)
	must(t, err)
	path := fmt.Sprintf("/berth-stats-test-%d-%d", os.Getpid(), count.Add(1))
	if c.Version() == 2 { // one that is made ready for others below it holds no process
		must(t, c.Ensure(path+"/below"))
		must(t, c.Remove(path))
		must(t, os.Mkdir(c.Dir("", path), 0o755))
	} else {
		must(t, c.Ensure(path))
	}
	var files []string
	for _, controller := range append(c.Controllers(), "", "name=systemd") {
		if dir := c.Dir(controller, path); dir != "" {
			files = append(files, filepath.Join(dir, "cgroup.procs"))
		}
	}
	cmd := exec.Command("/bin/sh", append([]string{"-c", `for f in "$@"; do echo $$ >"$f" || exit 9; done; echo in; ` + script, "sh"}, files...)...)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var word string
	_, err = fmt.Fscan(out, &word)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		err := c.KillAll(ctx, path)
		<-ended
		if err := errors.Join(err, c.Remove(path)); err != nil {
			t.Error(err)
		}
	})
	return c, path
}

// The figures of this kernel, which nobody recorded.
func TestRealCgroup(t *testing.T) {
	c, path := busy(t, "while :; do :; done")
	if c.Version() == 1 && c.Dir("memory", path) != "" {
		must(t, os.WriteFile(filepath.Join(c.Dir("memory", path), "memory.limit_in_bytes"), []byte("104857600"), 0))
	}
	r := New(c, always)
	first, err := r.Container("id", path)
	must(t, err)
	if first.CPU.UsageNanoCores != nil {
		t.Error("a rate from one reading")
	}
	deadline := time.Now().Add(20 * time.Second)
	var second *Usage
	for second == nil || second.CPU.UsageNanoCores == nil || second.CPU.UsageNanoCores.Value == 0 {
		if time.Now().After(deadline) {
			t.Fatalf("no rate: %v", second.CPU)
		}
		second, err = r.Pod(Cgroup{"id", path}, nil)
		must(t, err)
	}
	if cores := second.CPU.UsageNanoCores.Value; cores > 1_100_000_000 {
		t.Errorf("one process uses %d nano cores", cores)
	}
	if first.CPU.UsageCoreNanoSeconds.Value >= second.CPU.UsageCoreNanoSeconds.Value || first.CPU.Timestamp >= second.CPU.Timestamp {
		t.Errorf("not later: %v, then %v", first.CPU, second.CPU)
	}
	if second.Tasks != 1 || second.Processes != 1 {
		t.Errorf("tasks %d, processes %d", second.Tasks, second.Processes)
	}
	m := second.Memory
	if m.GetUsageBytes().GetValue() == 0 || m.WorkingSetBytes.Value > m.UsageBytes.Value {
		t.Errorf("memory %v", m)
	}
	if c.Version() == 1 && m.AvailableBytes.GetValue()+m.WorkingSetBytes.Value != 104857600 {
		t.Errorf("available %v of 100 MiB", m)
	}
	if _, err := os.Stat(c.Dir("", path) + "/cpu.pressure"); err == nil && second.CPU.Psi.GetSome() == nil {
		t.Error("no pressure figures")
	}
}

func BenchmarkContainer(b *testing.B) {
	c, path := busy(b, "sleep 1000")
	r := New(c, always)
	b.ReportAllocs()
	defer reportCPU(b)()
	for b.Loop() {
		if _, err := r.Container("id", path); err != nil {
			b.Fatal(err)
		}
	}
}

func TestAssemble(t *testing.T) {
	u := &Usage{
		CPU:    &runtime.CpuUsage{Timestamp: 9, UsageCoreNanoSeconds: value(1)},
		Memory: &runtime.MemoryUsage{UsageBytes: value(2)},
		Swap:   &runtime.SwapUsage{SwapUsageBytes: value(3)},
		IO:     &runtime.IoUsage{Timestamp: 4},
		Count:  Count{Processes: 5},
	}
	layer := &runtime.FilesystemUsage{UsedBytes: value(6)}
	a := &runtime.ContainerAttributes{Id: "c"}
	c := AssembleContainer(a, u, layer)
	if diff := cmp.Diff(normal(`attributes:{id:"c"} cpu:{timestamp:9 usage_core_nano_seconds:{value:1}} memory:{usage_bytes:{value:2}} writable_layer:{used_bytes:{value:6}} swap:{swap_usage_bytes:{value:3}} io:{timestamp:4}
attributes:{id:"c"}
`), normal(text(c, AssembleContainer(a, nil, nil)))); diff != "" {
		t.Error(diff)
	}
	network := &runtime.NetworkUsage{Timestamp: 7, DefaultInterface: &runtime.NetworkInterfaceUsage{Name: "eth0"}}
	pa := &runtime.PodSandboxAttributes{Id: "p"}
	if diff := cmp.Diff(normal(`attributes:{id:"p"} linux:{cpu:{timestamp:9 usage_core_nano_seconds:{value:1}} memory:{usage_bytes:{value:2}} network:{timestamp:7 default_interface:{name:"eth0"}} process:{timestamp:9 process_count:{value:5}} containers:{attributes:{id:"c"}} io:{timestamp:4}}
attributes:{id:"p"} linux:{}
`), normal(text(AssemblePod(pa, u, network, []*runtime.ContainerStats{AssembleContainer(a, nil, nil)}), AssemblePod(pa, nil, &runtime.NetworkUsage{Timestamp: 7}, nil)))); diff != "" {
		t.Error(diff)
	}
}

func FuzzPressure(f *testing.F) {
	f.Add("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=1.5 avg60=0.00 avg300=0.00 total=9\n")
	f.Add("some total=\n")
	f.Fuzz(func(t *testing.T, text string) {
		if psi, err := parsePressure([]byte(text)); err != nil && psi != (pressure{}) {
			t.Errorf("%v and %v", psi, err)
		}
	})
}

func FuzzFields(f *testing.F) {
	f.Add("anon 1\nfile 2\n")
	f.Add("file")
	f.Fuzz(func(t *testing.T, text string) {
		var v uint64
		w := []field{{name: "file", value: &v}}
		if err := fields([]byte(text), w); err == nil && !w[0].found && v != 0 {
			t.Errorf("value %d from nowhere", v)
		}
	})
}

// reportCPU adds processor time to a benchmark: on a busy machine, wall time
// says little. It is to be deferred.
func reportCPU(b *testing.B) func() {
	used := func() int64 {
		var r unix.Rusage
		must(b, unix.Getrusage(unix.RUSAGE_SELF, &r))
		return r.Utime.Nano() + r.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}

func BenchmarkMetrics(b *testing.B) {
	c, path := busy(b, "sleep 1000")
	r := New(c, always)
	defer func() { must(b, r.Close()) }()
	for _, test := range []struct {
		name string
		add  func(*Sheet) error
	}{
		{"container", func(s *Sheet) error {
			_, err := r.AddContainer(s, Cgroup{"c", path}, false)
			return err
		}},
		{"pod", func(s *Sheet) error { return r.AddPod(s, Cgroup{"p", path}, nil) }},
	} {
		b.Run(test.name, func(b *testing.B) {
			sheet := new(Sheet)
			b.ReportAllocs()
			defer reportCPU(b)()
			for b.Loop() {
				sheet.Begin(Labels{ID: "c"})
				if err := test.add(sheet); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
