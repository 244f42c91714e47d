package host

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	st, err := os.Stat(path)
	must(t, err)
	return st.Sys().(*syscall.Stat_t).Ino
}

// inside renders what is set in the pinned namespaces of dir.
func inside(t *testing.T, dir string, sysctls ...string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var text strings.Builder
	var fds []int
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		pinned, err := isPinned(path, e.Name())
		must(t, err)
		shared := inode(t, path) == inode(t, "/proc/self/ns/"+e.Name())
		fmt.Fprintf(&text, "%s pinned=%v host's=%v\n", e.Name(), pinned, shared)
		if pinned {
			fd, err := openNamespace(path)
			must(t, err)
			defer unix.Close(fd)
			fds = append(fds, fd)
		}
	}
	must(t, onOwnThread(func() error {
		for _, fd := range fds {
			if err := unix.Setns(fd, 0); err != nil {
				return err
			}
		}
		for _, path := range sysctls {
			data, err := os.ReadFile("/proc/sys/" + path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&text, "%s=%s\n", path, strings.Join(strings.Fields(string(data)), " "))
		}
		if slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == netKind }) {
			links, err := netlink.LinkList()
			if err != nil {
				return err
			}
			for _, l := range links {
				fmt.Fprintf(&text, "link %s %s\n", l.Attrs().Name, l.Attrs().Flags)
			}
		}
		return nil
	}))
	return text.String()
}

func TestPinNamespaces(t *testing.T) {
	dir := filepath.Join(tempDir(t), "state", "ns")
	hostname, err := os.Hostname()
	must(t, err)
	settings := []string{"kernel/hostname", "kernel/domainname", "kernel/shmmax", "kernel/sem", "fs/mqueue/msg_max", "net/ipv4/ip_forward", "net/ipv4/ip_local_port_range", "net/ipv4/conf/all/send_redirects"}
	hostBefore := inside(t, t.TempDir(), settings...)

	o := NamespaceOptions{Net: true, IPC: true, UTS: true, Hostname: "a-pod", Sysctls: map[string]string{
		"net.ipv4.ip_forward":              "1",
		"net/ipv4/ip_local_port_range":     "2000 3000",
		"net.ipv4.conf.all.send_redirects": "0",
		"net.ipv4.conf.eth0.forwarding":    "1", // of an interface to come
		"kernel.shmmax":                    "12345678",
		"kernel.sem":                       "100 2000 50 60",
		"fs.mqueue.msg_max":                "33",
		"kernel.domainname":                "example.org",
	}}
	must(t, PinNamespaces(dir, o))
	want := `ipc pinned=true host's=false
net pinned=true host's=false
uts pinned=true host's=false
kernel/hostname=a-pod
kernel/domainname=example.org
kernel/shmmax=12345678
kernel/sem=100 2000 50 60
fs/mqueue/msg_max=33
net/ipv4/ip_forward=1
net/ipv4/ip_local_port_range=2000 3000
net/ipv4/conf/all/send_redirects=0
link lo up|loopback|running
`
	if diff := cmp.Diff(want, inside(t, dir, settings...)); diff != "" {
		t.Fatal(diff)
	}
	if diff := cmp.Diff(hostBefore, inside(t, t.TempDir(), settings...)); diff != "" {
		t.Errorf("the host's own namespaces changed: %s", diff)
	}
	if now, _ := os.Hostname(); now != hostname {
		t.Errorf("the host's name is now %s", now)
	}

	inodes := func() (all [3]uint64) {
		for i, kind := range []string{netKind, ipcKind, utsKind} {
			all[i] = inode(t, filepath.Join(dir, kind))
		}
		return all
	}
	before := inodes()
	must(t, PinNamespaces(dir, o))
	if after := inodes(); after != before {
		t.Errorf("a second call made other namespaces: %v, then %v", before, after)
	}

	t.Run("repair", func(t *testing.T) {
		// As a crash between making the file and mounting would leave it.
		must(t, Unmount(filepath.Join(dir, ipcKind)))
		must(t, PinNamespaces(dir, o))
		after := inodes()
		if after[0] != before[0] || after[2] != before[2] {
			t.Errorf("complete namespaces were not kept: %v, then %v", before, after)
		}
		if diff := cmp.Diff(want, inside(t, dir, settings...)); diff != "" {
			t.Error(diff)
		}
	})

	for range 2 {
		must(t, UnpinNamespaces(dir))
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Errorf("the directory is still there: %v", err)
		}
		if left := mountsBelow(t, filepath.Dir(dir)); left != "" {
			t.Errorf("mounts left: %s", left)
		}
	}
}

func TestPinNamespacesPartly(t *testing.T) {
	dir := filepath.Join(tempDir(t), "ns")
	must(t, PinNamespaces(dir, NamespaceOptions{IPC: true, Hostname: "not-set"}))
	name, err := os.Hostname()
	must(t, err)
	if diff := cmp.Diff("ipc pinned=true host's=false\nkernel/hostname="+name+"\n", inside(t, dir, "kernel/hostname")); diff != "" {
		t.Error(diff)
	}
	must(t, PinNamespaces(dir, NamespaceOptions{}))
	must(t, UnpinNamespaces(dir))
}

func TestBadSysctls(t *testing.T) {
	all := NamespaceOptions{Net: true, IPC: true, UTS: true}
	for _, test := range []struct {
		name, value, want string
		o                 NamespaceOptions
	}{
		{"kernel.panic", "1", "whole machine's", all},
		{"kernel.shm_not", "1", "whole machine's", all},
		{"vm.swappiness", "1", "whole machine's", all},
		{"fs.file-max", "1", "whole machine's", all},
		{"net", "1", "whole machine's", all},
		{"", "1", "not a name", all},
		{"net.ipv4..x", "1", "not a name", all},
		{"net/../kernel/panic", "1", "not a name", all},
		{"net.//.kernel.panic", "1", "not a name", all},
		{"net/ipv4/\x00", "1", "not a name", all},
		{"kernel.hostname", "x", "set the pod's hostname", all},
		{"net.ipv4.no_such", "1", "none of that name", all},
		{"net.ipv4.ip_forward", "many", "refuses the value", all},
		{"net.ipv4.ip_local_port_range", "9 1", "refuses the value", all},
		{"net.ipv4.ip_forward", "1", "shares with the host", NamespaceOptions{IPC: true, UTS: true}},
		{"kernel.msgmax", "1", "shares with the host", NamespaceOptions{Net: true, UTS: true}},
		{"kernel.domainname", "x", "shares with the host", NamespaceOptions{Net: true, IPC: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(tempDir(t), "ns")
			test.o.Sysctls = map[string]string{test.name: test.value}
			err := PinNamespaces(dir, test.o)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), fmt.Sprintf("%q", test.name)) {
				t.Errorf("error %v; want an invalid argument that names it and says %q", err, test.want)
			}
			if _, err := os.Lstat(dir); !os.IsNotExist(err) {
				t.Errorf("something was left behind")
			}
		})
	}
	t.Run("hostname", func(t *testing.T) {
		err := PinNamespaces(filepath.Join(tempDir(t), "ns"), NamespaceOptions{UTS: true, Hostname: strings.Repeat("x", 65)})
		if !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
	})
}

func TestSetLinkSysctls(t *testing.T) {
	dir := filepath.Join(tempDir(t), "ns")
	must(t, PinNamespaces(dir, NamespaceOptions{Net: true}))
	defer UnpinNamespaces(dir)
	netns := filepath.Join(dir, netKind)
	sysctls := map[string]string{"net.ipv4.conf.eth0/7.forwarding": "1", "net.ipv4.ip_forward": "junk, but not for this call", "kernel.shmmax": "5"}
	if err := SetLinkSysctls(netns, sysctls); !errdefs.IsInvalidArgument(err) {
		t.Errorf("without the interface: %v", err)
	}
	must(t, InNetNS(netns, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0.7"}, PeerName: "peer"})
	}))
	must(t, SetLinkSysctls(netns, sysctls))
	if diff := cmp.Diff("net pinned=true host's=false\nnet/ipv4/conf/eth0.7/forwarding=1\nlink lo up|loopback|running\nlink peer broadcast|multicast\nlink eth0.7 broadcast|multicast\n",
		inside(t, dir, "net/ipv4/conf/eth0.7/forwarding")); diff != "" {
		t.Error(diff)
	}
}

// A copy of the mount in another mount namespace must not keep the namespace.
func TestUnpinReachesOtherMountNamespaces(t *testing.T) {
	for _, test := range []struct {
		name        string
		tree, other uintptr // propagation
	}{
		{"private tree", unix.MS_PRIVATE, unix.MS_PRIVATE},
		{"shared tree, private copy", unix.MS_SHARED, unix.MS_PRIVATE},
		{"shared tree, slave copy", unix.MS_SHARED, unix.MS_SLAVE},
		{"shared tree, shared copy", unix.MS_SHARED, unix.MS_SHARED},
	} {
		t.Run(test.name, func(t *testing.T) {
			tree := filepath.Join(tempDir(t), "tree")
			must(t, os.Mkdir(tree, 0o755))
			must(t, unix.Mount("tree", tree, "tmpfs", 0, ""))
			must(t, unix.Mount("", tree, "", test.tree, ""))
			dir := filepath.Join(tree, "ns")
			must(t, PinNamespaces(dir, NamespaceOptions{Net: true, UTS: true}))
			defer UnpinNamespaces(dir)

			other, leave := otherMountNamespace(t, test.other)
			defer leave()
			if n := strings.Count(read(t, other), dir); n != 2 {
				t.Fatalf("the other mount namespace has %d copies", n)
			}
			gone := linkGone(t, filepath.Join(dir, netKind))
			must(t, UnpinNamespaces(dir))
			if text := read(t, other); strings.Contains(text, dir) {
				t.Errorf("copies stay in the other mount namespace:\n%s", text)
			}
			gone()
		})
	}
}

// otherMountNamespace keeps a mount namespace on a thread and returns its
// mountinfo file.
func otherMountNamespace(t *testing.T, propagation uintptr) (string, func()) {
	file, leave, left := make(chan string), make(chan struct{}), make(chan error)
	go func() {
		left <- onOwnThread(func() error {
			defer close(file)
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", propagation|unix.MS_REC, ""); err != nil {
				return err
			}
			file <- fmt.Sprintf("/proc/self/task/%d/mountinfo", unix.Gettid())
			<-leave
			return nil
		})
	}()
	path := <-file
	return path, func() {
		close(leave)
		if err := <-left; err != nil {
			t.Error(err)
		}
	}
}

// linkGone puts one end of a veth pair into the namespace. The function
// returned waits for the other end to vanish, as it does with the namespace.
func linkGone(t *testing.T, netns string) func() {
	ns, err := os.Open(netns)
	must(t, err)
	name := fmt.Sprintf("bt%d", os.Getpid())
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}))
	must(t, ns.Close())
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	must(t, netlink.LinkSubscribe(updates, done))
	return func() {
		defer func() {
			close(done)
			for range updates {
			}
		}()
		limit := time.After(20 * time.Second)
		for {
			select {
			case u := <-updates:
				if u.Header.Type == unix.RTM_DELLINK && u.Attrs().Name == name {
					return
				}
			case <-limit:
				t.Errorf("the network namespace still lives")
				if l, err := netlink.LinkByName(name); err == nil {
					netlink.LinkDel(l)
				}
				return
			}
		}
	}
}

func TestUnpinOddities(t *testing.T) {
	dir := filepath.Join(tempDir(t), "ns")
	must(t, PinNamespaces(dir, NamespaceOptions{UTS: true}))
	// Mounted twice, as two daemons at once could.
	must(t, unix.Mount("/proc/self/ns/uts", filepath.Join(dir, utsKind), "", unix.MS_BIND, ""))
	write(t, filepath.Join(dir, "stray"), "")
	must(t, UnpinNamespaces(dir))
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Error("still there")
	}

	// Mounted at a second place of this mount namespace: said, and repairable.
	must(t, PinNamespaces(dir, NamespaceOptions{UTS: true}))
	second := dir + "-second"
	must(t, os.Mkdir(second, 0o755))
	must(t, unix.Mount(dir, second, "", unix.MS_BIND|unix.MS_REC, ""))
	must(t, unix.Mount("", second, "", unix.MS_PRIVATE|unix.MS_REC, ""))
	if err := UnpinNamespaces(dir); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second mount: %v", err)
	}
	must(t, Unmount(second))
	must(t, UnpinNamespaces(dir))
}

func TestPinOfAnotherKind(t *testing.T) {
	dir := tempDir(t)
	must(t, pin("/proc/self/ns/uts", filepath.Join(dir, netKind)))
	if err := PinNamespaces(dir, NamespaceOptions{Net: true}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v", err)
	}
}

func TestPinPID(t *testing.T) {
	path := filepath.Join(tempDir(t), "ns", pidKind)
	if err := PinPID(path, 1<<30); !errdefs.IsNotFound(err) {
		t.Errorf("no such process: %v", err)
	}
	first := sleeper(t, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID})
	second := sleeper(t, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID})
	for _, cmd := range []*os.Process{first.Process, first.Process, second.Process} {
		must(t, PinPID(path, cmd.Pid))
		if have, want := inode(t, path), inode(t, fmt.Sprintf("/proc/%d/ns/pid", cmd.Pid)); have != want {
			t.Errorf("pinned %d, want %d", have, want)
		}
		if n := strings.Count(mountsBelow(t, filepath.Dir(path)), "\n"); n != 1 {
			t.Errorf("%d mounts", n)
		}
	}
	must(t, UnpinNamespaces(filepath.Dir(path)))
}

// The main thread stands for the process in /proc/self: it must stay where it
// is, and so must every thread that goroutines run on.
func TestThreadsComeBack(t *testing.T) {
	dir := filepath.Join(tempDir(t), "ns")
	must(t, PinNamespaces(dir, NamespaceOptions{Net: true}))
	defer UnpinNamespaces(dir)
	netns := filepath.Join(dir, netKind)
	home, away := inode(t, "/proc/self/ns/net"), inode(t, netns)
	failed := make(chan error, 40)
	for range cap(failed) {
		go func() {
			failed <- InNetNS(netns, func() error {
				runtime.Gosched()
				if unix.Gettid() == unix.Getpid() {
					return fmt.Errorf("on the main thread")
				}
				if now := inode(t, "/proc/thread-self/ns/net"); now != away {
					return fmt.Errorf("in namespace %d", now)
				}
				if now := inode(t, "/proc/self/ns/net"); now != home {
					return fmt.Errorf("the process moved to namespace %d", now)
				}
				return nil
			})
		}()
	}
	for range cap(failed) {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	must(t, err)
	for _, path := range threads {
		if st, err := os.Stat(path); err == nil && st.Sys().(*syscall.Stat_t).Ino != home {
			t.Errorf("thread %s stayed in another namespace", path)
		}
	}
}

func BenchmarkPinNamespaces(b *testing.B) {
	dir := filepath.Join(tempDir(b), "ns")
	o := NamespaceOptions{Net: true, IPC: true, UTS: true, Hostname: "pod", Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}}
	var unpin time.Duration
	defer reportCPU(b)()
	for b.Loop() {
		must(b, PinNamespaces(dir, o))
		at := time.Now()
		must(b, UnpinNamespaces(dir))
		unpin += time.Since(at)
	}
	b.ReportMetric(float64(unpin.Nanoseconds())/float64(b.N), "ns/unpin")
}
