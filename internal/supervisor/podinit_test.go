package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"berth/internal/host"
	"berth/internal/supervisor/podinit"
)

const sandbox = "0123456789abcdef"

// pod has pinned namespaces and the options to start an init in them.
func pod(t testing.TB) PodInitOptions {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ns")
	if err := host.PinNamespaces(dir, host.NamespaceOptions{Net: true, IPC: true, UTS: true, Hostname: "pod"}); err != nil {
		t.Fatal(err)
	}
	r := NewReaper(testLog(t))
	o := PodInitOptions{
		Binary:     binary,
		ID:         sandbox,
		Namespaces: []string{filepath.Join(dir, "net"), filepath.Join(dir, "ipc"), filepath.Join(dir, "uts")},
		Pin:        filepath.Join(dir, "pid"),
		Reaper:     r,
	}
	t.Cleanup(func() {
		if err := errors.Join(StopPodInit(testContext(t), o.Pin), host.UnpinNamespaces(dir)); err != nil {
			t.Error(err)
		}
		r.Close()
	})
	return o
}

func startInit(t testing.TB, o PodInitOptions) host.Process {
	t.Helper()
	p, err := StartPodInit(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func proc(p host.Process, name string) string {
	return filepath.Join("/proc", strconv.Itoa(p.PID), name)
}

// status is /proc/PID/status, those fields that say what the process may do.
func status(t testing.TB, p host.Process) string {
	t.Helper()
	data, err := os.ReadFile(proc(p, "status"))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		switch key {
		case "Name", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs":
			fmt.Fprintln(&b, key, strings.Join(strings.Fields(value), " "))
		case "NSpid":
			fields := strings.Fields(value)
			fmt.Fprintln(&b, key, fields[len(fields)-1])
		}
	}
	return b.String()
}

func TestPodInitIsConfined(t *testing.T) {
	o := pod(t)
	p := startInit(t, o)
	const none = "0000000000000000"
	want := "Name pod-init\nUid 65535 65535 65535 65535\nGid 65535 65535 65535 65535\nGroups \nNSpid 1\n" +
		"CapInh " + none + "\nCapPrm " + none + "\nCapEff " + none + "\nCapBnd " + none + "\nCapAmb " + none + "\nNoNewPrivs 1\n"
	if diff := cmp.Diff(want, status(t, p)); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	for name, want := range map[string]string{
		"cmdline": "pod-init\x00" + sandbox + "\x00",
		"environ": "",
	} {
		if got, err := os.ReadFile(proc(p, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	if fds, err := os.ReadDir(proc(p, "fd")); err != nil || len(fds) > 0 {
		t.Errorf("open descriptors %v, %v", fds, err)
	}
	for name, want := range map[string]string{"exe": "/pod-init", "cwd": "/", "root": "/"} {
		if got, err := os.Readlink(proc(p, name)); err != nil || !strings.HasSuffix(got, want) {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	for i, kind := range []string{"net", "ipc", "uts"} {
		want, err1 := os.Stat(o.Namespaces[i])
		got, err2 := os.Stat(proc(p, "ns/"+kind))
		if err := errors.Join(err1, err2); err != nil || !os.SameFile(want, got) {
			t.Errorf("namespace %s is another one, %v", kind, err)
		}
	}
	pinned, err1 := os.Stat(o.Pin)
	own, err2 := os.Stat(proc(p, "ns/pid"))
	if err := errors.Join(err1, err2); err != nil || !os.SameFile(pinned, own) {
		t.Errorf("the PID namespace is not pinned, %v", err)
	}
}

// Its root shows nothing of the host and cannot be written, nor can the host's
// binary through it.
func TestPodInitRoot(t *testing.T) {
	p := startInit(t, pod(t))
	entries, err := os.ReadDir(proc(p, "root"))
	if err != nil || len(entries) != 1 || entries[0].Name() != podinit.Name {
		t.Errorf("root holds %v, %v", entries, err)
	}
	if err := os.WriteFile(proc(p, "root/x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write in the root: %v", err)
	}
	if err := unix.Access(proc(p, "exe"), unix.W_OK); !errors.Is(err, unix.EROFS) {
		t.Errorf("write access to the program: %v", err)
	}
	mounts, err := os.ReadFile(proc(p, "mountinfo"))
	if err != nil || bytes.Count(mounts, []byte("\n")) != 1 || !bytes.Contains(mounts, []byte(" ro,nosuid,nodev")) {
		t.Errorf("%v; mounts:\n%s", err, mounts)
	}
	// Nobody of the same user looks into it.
	if fi, err := os.Stat(proc(p, "environ")); err != nil || fi.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("it is dumpable: %+v, %v", fi, err)
	}
	// The host's mounts are as they were.
	if own, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(own, []byte(podinit.Name)) {
		t.Errorf("%v; our mounts:\n%s", err, own)
	}
}

// inside runs a shell in the pod's PID namespace.
func inside(t testing.TB, o PodInitOptions, script string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := host.StartIn(append(slices.Clone(o.Namespaces), o.Pin), cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	return out.String()
}

func members(t testing.TB, o PodInitOptions) int {
	t.Helper()
	var ns unix.Stat_t
	if err := unix.Stat(o.Pin, &ns); err != nil {
		t.Fatal(err)
	}
	n := 0
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		var st unix.Stat_t
		if unix.Stat(dir+"/ns/pid", &st) == nil && st.Ino == ns.Ino && st.Dev == ns.Dev {
			n++
		}
	}
	return n
}

func TestPodInitReaps(t *testing.T) {
	o := pod(t)
	p := startInit(t, o)
	out := inside(t, o, `for i in 1 2 3 4 5 6 7 8 9 10; do (true & true &) ; done; hostname; exec sleep 0`)
	if out != "pod\n" {
		t.Errorf("hostname %q", out)
	}
	within(t, "no zombie", func() bool { return zombies(t, p) == 0 && members(t, o) == 1 })
}

// zombies counts the children of p that nobody took note of.
func zombies(t testing.TB, p host.Process) int {
	t.Helper()
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	n := 0
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		if len(fields) > 1 && fields[0] == "Z" && fields[1] == strconv.Itoa(p.PID) {
			n++
		}
	}
	return n
}

func TestPodInitLifecycle(t *testing.T) {
	o, ctx := pod(t), testContext(t)
	if _, err := FindPodInit(o.Pin); !errdefs.IsNotFound(err) {
		t.Errorf("find before start: %v", err)
	}
	p := startInit(t, o)
	if again := startInit(t, o); again != p {
		t.Errorf("started again: %v, want %v", again, p)
	}
	if found, err := FindPodInit(o.Pin); err != nil || found != p {
		t.Errorf("found %v, %v; want %v", found, err, p)
	}
	for _, end := range []func() error{
		func() error { return p.Signal(syscall.SIGTERM) },
		func() error { return p.Signal(syscall.SIGKILL) },
		func() error { return StopPodInit(ctx, o.Pin) },
	} {
		sleeper := exec.Command("sleep", "60")
		if err := host.StartIn([]string{o.Pin}, sleeper); err != nil {
			t.Fatal(err)
		}
		// The kernel ends the init after all others of the namespace were
		// reaped; this one's parent is us.
		reaped := make(chan error, 1)
		go func() { reaped <- sleeper.Wait() }()
		if err := errors.Join(end(), p.Wait(ctx)); err != nil {
			t.Fatal(err)
		}
		if err := <-reaped; err == nil {
			t.Error("a process of the namespace outlives its init")
		}
		within(t, "reaped", func() bool { _, err := os.Stat(proc(p, "")); return errors.Is(err, os.ErrNotExist) })
		if _, err := FindPodInit(o.Pin); !errdefs.IsNotFound(err) {
			t.Errorf("find after the end: %v", err)
		}
		p = startInit(t, o) // in place of the one that ended
	}
	if err := errors.Join(StopPodInit(ctx, o.Pin), StopPodInit(ctx, o.Pin)); err != nil {
		t.Error(err)
	}
}

func TestPodInitCgroup(t *testing.T) {
	cgroups, err := host.NewCgroups("cgroupfs")
	if err != nil {
		t.Fatal(err)
	}
	o := pod(t)
	name := fmt.Sprintf("/berth-podinit-%d", os.Getpid())
	if err := cgroups.Ensure(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(StopPodInit(context.Background(), o.Pin), cgroups.Remove(name)); err != nil {
			t.Error(err)
		}
	})
	for _, c := range cgroups.Controllers() {
		o.Cgroups = append(o.Cgroups, cgroups.Dir(c, name))
	}
	p := startInit(t, o)
	if pids, err := cgroups.Procs(name); err != nil || !slices.Contains(pids, p.PID) {
		t.Errorf("processes %v, %v; want %d", pids, err, p.PID)
	}
}

func TestPodInitFails(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*PodInitOptions)
		want   string
	}{
		"no program":         {func(o *PodInitOptions) { o.Binary = "/nonexistent" }, "no such file"},
		"another program":    {func(o *PodInitOptions) { o.Binary = "/bin/true" }, "ended before it was ready"},
		"namespace is gone":  {func(o *PodInitOptions) { o.Namespaces = []string{"/nonexistent"} }, "/nonexistent"},
		"cgroup is gone":     {func(o *PodInitOptions) { o.Cgroups = []string{"/nonexistent"} }, "move to cgroup"},
		"pin cannot be made": {func(o *PodInitOptions) { o.Pin = "/proc/nonexistent/pid" }, "pin"},
		"no pin":             {func(o *PodInitOptions) { o.Pin = "" }, "required"},
	} {
		t.Run(name, func(t *testing.T) {
			o := pod(t)
			test.change(&o)
			p, err := StartPodInit(testContext(t), o)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("process %v, error %v; want %q", p, err, test.want)
			}
			within(t, "none left", func() bool {
				found, err := host.FindProcesses(func(c []string) bool { return len(c) > 1 && c[len(c)-1] == sandbox })
				return err == nil && len(found) == 0
			})
		})
	}
	o := pod(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := StartPodInit(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A daemon that dies before it pinned the namespace leaves no process.
func TestPodInitWithoutDaemon(t *testing.T) {
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, podinit.Name, sandbox)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 100)
	if n, err := ours.Read(said); err != nil || string(said[:n]) != podinit.Ready {
		t.Fatalf("said %q, %v", said[:n], err)
	}
	ours.Close()
	if err := cmd.Wait(); err == nil {
		t.Error("it ended well")
	}
	if out, err := exec.Command(binary, podinit.Name).CombinedOutput(); err == nil {
		t.Errorf("started by hand: %s", out)
	}
}

// The Reaper's end is not the process's.
func TestReaperCloses(t *testing.T) {
	o := pod(t)
	p := startInit(t, o)
	o.Reaper.Close()
	o.Reaper.Close()
	if !p.Alive() {
		t.Error("the process has ended")
	}
	if found, err := FindPodInit(o.Pin); err != nil || found != p {
		t.Errorf("found %v, %v", found, err)
	}
	syscall.Kill(p.PID, syscall.SIGKILL)
	syscall.Wait4(p.PID, nil, 0, nil) // nobody else does now
}

func BenchmarkPodInit(b *testing.B) {
	o := pod(b)
	for b.Loop() {
		startInit(b, o)
		b.StopTimer()
		if err := StopPodInit(context.Background(), o.Pin); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// With a user namespace the init makes all of the pod's namespaces, which are
// pinned, and may do no more than any other.
func TestPodInitUserNamespace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ns")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 7 << 16, Size: 1 << 16}}
	r := NewReaper(testLog(t))
	o := PodInitOptions{
		Binary: binary, ID: sandbox, Pin: filepath.Join(dir, "pid"), Reaper: r,
		Make: &host.NamespaceOptions{Net: true, IPC: true, UTS: true, Hostname: "pod", User: &host.IDMap{UIDs: ids, GIDs: ids},
			Sysctls: map[string]string{"kernel.msgmax": "9001"}},
	}
	t.Cleanup(func() {
		if err := errors.Join(StopPodInit(testContext(t), o.Pin), host.UnpinNamespaces(dir)); err != nil {
			t.Error(err)
		}
		r.Close()
	})
	p := startInit(t, o)
	var got strings.Builder
	for line := range strings.Lines(status(t, p)) {
		if strings.HasPrefix(line, "Uid") || strings.HasPrefix(line, "Gid") || strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NSpid") {
			got.WriteString(line)
		}
	}
	const id, none = " 524287 524287 524287 524287\n", " 0000000000000000\n" // 65535 of the pod's
	want := "Uid" + id + "Gid" + id + "NSpid 1\nCapInh" + none + "CapPrm" + none + "CapEff" + none + "CapBnd" + none + "CapAmb" + none
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Error(diff)
	}
	for _, kind := range []string{"user", "net", "ipc", "uts", "pid"} {
		pinned, err1 := os.Stat(filepath.Join(dir, kind))
		own, err2 := os.Stat(proc(p, "ns/"+kind))
		if err := errors.Join(err1, err2); err != nil || !os.SameFile(pinned, own) {
			t.Errorf("namespace %s is not pinned, %v", kind, err)
		}
	}
	if again := startInit(t, o); again.PID != p.PID {
		t.Errorf("a second one was started: %d beside %d", again.PID, p.PID)
	}
	set := o
	set.Namespaces = []string{filepath.Join(dir, "ipc"), filepath.Join(dir, "uts"), filepath.Join(dir, "net")}
	if got, want := inside(t, set, "cat /proc/sys/kernel/msgmax; hostname"), "9001\npod\n"; got != want {
		t.Errorf("in the namespaces: %q, want %q", got, want)
	}
}
