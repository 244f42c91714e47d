package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var cgroupCount atomic.Int64

// tempCgroup is the path of a cgroup that is there for this test only.
func tempCgroup(t testing.TB, c *Cgroups) string {
	path := fmt.Sprintf("/berth-host-test-%d-%d", os.Getpid(), cgroupCount.Add(1))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := errors.Join(c.KillAll(ctx, path), c.Remove(path)); err != nil {
			t.Error(err)
		}
		if c.Exists(path) {
			t.Errorf("cgroup %s is still there", path)
		}
	})
	return path
}

// layouts are the machine's own layout and a real v2 hierarchy: where the
// machine is hybrid, its additional tree as though it were the only one.
func layouts(t testing.TB) map[string]*Cgroups {
	own, err := NewCgroups(CgroupfsDriver)
	must(t, err)
	all := map[string]*Cgroups{"own": own}
	if tree := own.Dir("", "/"); own.Version() == 1 && tree != "" {
		root := t.TempDir()
		write(t, filepath.Join(root, "proc/self/mountinfo"), "30 22 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
		must(t, os.MkdirAll(filepath.Join(root, "sys/fs"), 0o755))
		must(t, os.Symlink(tree, filepath.Join(root, "sys/fs/cgroup")))
		v2, err := NewCgroupsAt(root, CgroupfsDriver)
		must(t, err)
		all["v2"] = v2
		keepControl(t, filepath.Join(tree, "cgroup.subtree_control"))
	}
	return all
}

// keepControl leaves the controllers of the machine's own tree as found.
func keepControl(t testing.TB, file string) {
	before := strings.Fields(read(t, file))
	t.Cleanup(func() {
		for _, on := range strings.Fields(read(t, file)) {
			if !slices.Contains(before, on) {
				if err := writeFile(file, "-"+on); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

// leaf makes a cgroup for processes, as a runtime does for a container.
func leaf(t testing.TB, c *Cgroups, path string) {
	t.Helper()
	if c.Version() == 1 {
		must(t, c.Ensure(path))
		return
	}
	must(t, c.Ensure(filepath.Dir(path)))
	if filepath.Dir(path) == "/" {
		must(t, delegate(c.Dir("", "/")))
	}
	must(t, os.Mkdir(c.Dir("", path), 0o755))
}

// join starts a shell command whose processes are in the cgroup from its
// start on.
func join(t testing.TB, c *Cgroups, path, script string) *exec.Cmd {
	t.Helper()
	var files []string
	for _, dir := range c.dirs(path) {
		files = append(files, filepath.Join(dir, "cgroup.procs"))
	}
	cmd := exec.Command("/bin/sh", append([]string{"-c", `for f in "$@"; do echo $$ >"$f" || exit 9; done; echo in; ` + script, "sh"}, files...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	start(t, cmd)
	var word string
	if _, err := fmt.Fscan(out, &word); err != nil || word != "in" {
		t.Fatalf("the command did not join %s: %v", path, err)
	}
	return cmd
}

func TestEnsureAndRemove(t *testing.T) {
	for name, c := range layouts(t) {
		t.Run(name, func(t *testing.T) {
			top := tempCgroup(t, c)
			parent := top + "/kube.pods/pod-1"
			if c.Exists(parent) || c.Exists(top) {
				t.Error("exists from the start")
			}
			for range 2 {
				must(t, c.Ensure(parent))
				for _, dir := range c.dirs(parent) {
					if st, err := os.Stat(dir); err != nil || !st.IsDir() {
						t.Errorf("%s: %v", dir, err)
					}
				}
			}
			if !c.Exists(parent) || !c.Exists(top) || c.Exists(parent+"/x") {
				t.Error("wrong about what exists")
			}
			leaf(t, c, parent+"/container")
			join(t, c, parent+"/container", "sleep 1000") // a cpuset without processors takes nobody

			if err := c.Remove(top); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), parent) {
				t.Errorf("remove with a process in it: %v", err)
			}
			if pids, err := c.Procs(top); err != nil || len(pids) == 0 {
				t.Errorf("its processes %v, %v", pids, err)
			}
			must(t, c.KillAll(t.Context(), top))
			for range 2 {
				must(t, c.Remove(top))
				if c.Exists(top) {
					t.Error("exists after its removal")
				}
			}
			for _, root := range []string{"", "/", ".."} {
				must(t, c.Ensure(root))
				if err := c.Remove(root); !errdefs.IsInvalidArgument(err) {
					t.Errorf("remove %q: %v", root, err)
				}
				if err := c.KillAll(t.Context(), root); !errdefs.IsInvalidArgument(err) {
					t.Errorf("kill all of %q: %v", root, err)
				}
			}
		})
	}
}

// What a crash left half made: some hierarchies without the cgroup, one with
// an empty cpuset.
func TestEnsureRepairs(t *testing.T) {
	c, err := NewCgroups(CgroupfsDriver)
	must(t, err)
	if c.Dir("cpuset", "/") == "" || c.Version() != 1 {
		t.Skip("no v1 cpuset hierarchy here")
	}
	path := tempCgroup(t, c) + "/pod"
	must(t, os.MkdirAll(c.Dir("cpuset", path), 0o755))
	must(t, c.Ensure(path))
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		if have, want := read(t, filepath.Join(c.Dir("cpuset", path), file)), read(t, filepath.Join(c.Dir("cpuset", "/"), file)); have != want {
			t.Errorf("%s is %q, want %q", file, have, want)
		}
	}
	// A cpuset that was set is kept.
	must(t, writeFile(filepath.Join(c.Dir("cpuset", path), "cpuset.cpus"), "0"))
	must(t, c.Ensure(path))
	if have := read(t, filepath.Join(c.Dir("cpuset", path), "cpuset.cpus")); have != "0" {
		t.Errorf("cpuset.cpus became %q", have)
	}
	if dir := c.Dir("memory", path); dir != "" {
		if have := read(t, filepath.Join(dir, "memory.use_hierarchy")); have != "1" {
			t.Errorf("memory.use_hierarchy is %q", have)
		}
	}
	must(t, os.Remove(c.Dir("memory", path)))
	if !c.Exists(path) {
		t.Error("a cgroup in some hierarchies does not exist")
	}
	must(t, c.Ensure(path))
	if _, err := os.Stat(c.Dir("memory", path)); err != nil {
		t.Error(err)
	}
}

func TestKillAll(t *testing.T) {
	for name, c := range layouts(t) {
		t.Run(name, func(t *testing.T) {
			path := tempCgroup(t, c)
			must(t, c.KillAll(t.Context(), path)) // none there
			leaf(t, c, path+"/a/b")
			leaf(t, c, path+"/a/c")
			first := join(t, c, path+"/a/b", "sleep 1000 & sleep 1000 & wait")
			// One that ignores signals and forks all the time.
			second := join(t, c, path+"/a/c", "trap '' TERM INT HUP; while :; do (exec sleep 0.01) & wait; done")
			if dir := c.Dir("freezer", path); c.Version() == 1 && dir != "" {
				must(t, writeFile(filepath.Join(dir, "a", "freezer.state"), "FROZEN"))
			} else if c.Version() == 2 {
				must(t, writeFile(filepath.Join(c.Dir("", path), "a", "cgroup.freeze"), "1"))
			}
			reaped := make(chan error, 2)
			for _, cmd := range []*exec.Cmd{first, second} {
				go func() { reaped <- cmd.Wait() }()
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			must(t, c.KillAll(ctx, path))
			for range 2 {
				<-reaped
			}
			if pids, err := c.Procs(path); err != nil || len(pids) > 0 {
				t.Errorf("left: %v, %v", pids, err)
			}
			must(t, c.Remove(path))
		})
	}
}

// A process that cannot die holds KillAll no longer than its context: one that
// is stopped by a tracer stands for it by a context that has ended.
func TestKillAllGivesUp(t *testing.T) {
	c, err := NewCgroups(CgroupfsDriver)
	must(t, err)
	path := tempCgroup(t, c)
	leaf(t, c, path)
	join(t, c, path, "sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.KillAll(ctx, path); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
}

// Only processes that are in the cgroup when the signal is sent get it.
func TestSignalSparesOthers(t *testing.T) {
	c, err := NewCgroups(CgroupfsDriver)
	must(t, err)
	path := tempCgroup(t, c)
	leaf(t, c, path)
	bystander := sleeper(t, nil)
	p, err := ProcessOf(bystander.Process.Pid)
	must(t, err)
	must(t, c.signal(path, []int{p.PID}, unix.SIGKILL)) // its number was listed before
	if !p.Alive() {
		t.Error("a process outside the cgroup was killed")
	}
}

func TestOOMKills(t *testing.T) {
	c, err := NewCgroups(CgroupfsDriver)
	must(t, err)
	path := tempCgroup(t, c)
	if _, err := c.OOMKills(path); !errdefs.IsNotFound(err) {
		t.Errorf("no cgroup: %v", err)
	}
	dir := c.Dir("memory", path)
	if dir == "" {
		t.Skip("no memory controller here")
	}
	leaf(t, c, path)
	for i, want := range []uint64{0, 1} {
		if i == 1 {
			limit := "memory.limit_in_bytes"
			if c.Version() == 2 {
				limit = "memory.max"
			}
			must(t, writeFile(filepath.Join(dir, limit), "16777216"))
			err := join(t, c, path, "exec tail /dev/zero").Wait()
			if err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("a process over its limit ended as %v", err)
			}
		}
		if kills, err := c.OOMKills(path); err != nil || kills != want {
			t.Errorf("%d OOM kills, want %d: %v", kills, want, err)
		}
	}
}

func TestOOMKillsText(t *testing.T) {
	for text, want := range map[string]uint64{
		"": 0,
		"oom_kill_disable 0\nunder_oom 0\noom_kill 7\n":                 7,
		"low 0\nhigh 0\nmax 31\noom 2\noom_kill 12\noom_group_kill 3\n": 12,
	} {
		if have, err := oomKills(text); err != nil || have != want {
			t.Errorf("%q: %d, %v", text, have, err)
		}
	}
	if _, err := oomKills("oom_kill x\n"); err == nil {
		t.Error("junk is a number")
	}
}

func TestDelegate(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "cgroup.controllers"), "cpuset cpu memory pids\n")
	control := filepath.Join(dir, "cgroup.subtree_control")
	for have, want := range map[string]string{
		"cpu\n":                    "+cpuset +memory +pids",
		"":                         "+cpuset +cpu +memory +pids",
		"pids memory cpuset cpu\n": "pids memory cpuset cpu",
	} {
		write(t, control, have)
		must(t, delegate(dir))
		if text := read(t, control); !strings.HasPrefix(text, want) {
			t.Errorf("with %q on: wrote %q, want %q", have, text, want)
		}
	}
	must(t, os.Remove(control))
	if err := delegate(dir); err == nil {
		t.Error("no error without the file")
	}
}

// The kernel refuses controllers for cgroups below one that holds processes.
func TestDelegateBusy(t *testing.T) {
	c := layouts(t)["v2"]
	if c == nil || len(c.Controllers()) == 0 {
		t.Skip("no v2 hierarchy with a controller here")
	}
	path := tempCgroup(t, c)
	must(t, os.Mkdir(c.Dir("", path), 0o755))
	must(t, delegate(c.Dir("", "/")))
	join(t, c, path, "sleep 1000")
	if err := c.Ensure(path + "/pod"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "processes are in") {
		t.Errorf("error %v", err)
	}
}

const v2Only = "30 22 0:27 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"

const hybrid = `21 26 0:20 / /proc rw,relatime - proc proc rw
30 22 0:27 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
33 30 0:30 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset,clone_children
34 30 0:31 / /mnt/second rw,relatime - cgroup cgroup rw,memory
34 30 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
35 30 0:31 / /mnt/third rw,relatime - cgroup cgroup rw,memory
39 30 0:36 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
40 30 0:37 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
`

func TestLayouts(t *testing.T) {
	const v1Only = "33 30 0:30 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n"
	for _, test := range []struct {
		name, mounts string
		systemd      bool
		want         string
	}{
		{"hybrid with systemd", hybrid, true, `auto: systemd v1 [cpu cpuacct cpuset memory]
cpu /sys/fs/cgroup/cpu,cpuacct/a
cpuacct /sys/fs/cgroup/cpu,cpuacct/a
memory /sys/fs/cgroup/memory/a
pids 
name=systemd /sys/fs/cgroup/systemd/a
 /sys/fs/cgroup/unified/a
`},
		{"hybrid", hybrid, false, `auto: cgroupfs v1 [cpu cpuacct cpuset memory]
cpu /sys/fs/cgroup/cpu,cpuacct/a
cpuacct /sys/fs/cgroup/cpu,cpuacct/a
memory /sys/fs/cgroup/memory/a
pids 
name=systemd /sys/fs/cgroup/systemd/a
 /sys/fs/cgroup/unified/a
`},
		{"v1 without a hierarchy of systemd's", v1Only, true, `auto: cgroupfs v1 [pids]
cpu 
cpuacct 
memory 
pids /sys/fs/cgroup/pids/a
name=systemd 
 
`},
		{"v2", v2Only, true, `auto: systemd v2 [cpu memory pids]
cpu /sys/fs/cgroup/a
cpuacct 
memory /sys/fs/cgroup/a
pids /sys/fs/cgroup/a
name=systemd 
 /sys/fs/cgroup/a
`},
		{"v2 in a container", v2Only, false, `auto: cgroupfs v2 [cpu memory pids]
cpu /sys/fs/cgroup/a
cpuacct 
memory /sys/fs/cgroup/a
pids /sys/fs/cgroup/a
name=systemd 
 /sys/fs/cgroup/a
`},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := machine(t, test.mounts, test.systemd)
			c, err := NewCgroupsAt(root, "auto")
			must(t, err)
			defer c.Close()
			text := fmt.Sprintf("auto: %s v%d %v\n", c.Driver(), c.Version(), c.Controllers())
			for _, controller := range []string{"cpu", "cpuacct", "memory", "pids", "name=systemd", ""} {
				text += controller + " " + strings.TrimPrefix(c.Dir(controller, "/../a"), root) + "\n"
			}
			if diff := cmp.Diff(test.want, text); diff != "" {
				t.Error(diff)
			}
			_, err = NewCgroupsAt(root, SystemdDriver)
			if suits := c.Driver() == SystemdDriver; suits != (err == nil) || err != nil && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("driver systemd: %v", err)
			}
		})
	}
	if _, err := NewCgroupsAt(machine(t, "", true), "auto"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no hierarchy: %v", err)
	}
	if _, err := NewCgroupsAt(machine(t, hybrid, true), "docker"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `"docker"`) {
		t.Errorf("unknown driver: %v", err)
	}
}

// machine makes the tree of files of a machine.
func machine(t *testing.T, mounts string, systemd bool) string {
	root := t.TempDir()
	write(t, filepath.Join(root, "proc/self/mountinfo"), mounts)
	write(t, filepath.Join(root, "sys/fs/cgroup/cgroup.controllers"), "pids cpu memory\n")
	comm := "sh\n"
	if systemd {
		comm = "systemd\n"
		must(t, os.MkdirAll(filepath.Join(root, "run/systemd/system"), 0o755))
	}
	write(t, filepath.Join(root, "proc/1/comm"), comm)
	return root
}

func TestCgroupNames(t *testing.T) {
	cgroupfs, err := NewCgroupsAt(machine(t, hybrid, true), CgroupfsDriver)
	must(t, err)
	systemd, err := NewCgroupsAt(machine(t, hybrid, true), SystemdDriver)
	must(t, err)
	for _, test := range []struct {
		c                     *Cgroups
		parent, ociPath, path string
	}{
		{cgroupfs, "/kubepods/pod1", "/kubepods/pod1/ID", "/kubepods/pod1/ID"},
		{cgroupfs, "kubepods/pod1/", "/kubepods/pod1/ID", "/kubepods/pod1/ID"},
		{cgroupfs, "", "/ID", "/ID"},
		{cgroupfs, "/../..", "/ID", "/ID"},
		{systemd, "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice", "kubepods-burstable-pod1.slice:cri-containerd:ID",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-ID.scope"},
		{systemd, "kubepods-pod1_a.slice", "kubepods-pod1_a.slice:cri-containerd:ID", "/kubepods.slice/kubepods-pod1_a.slice/cri-containerd-ID.scope"},
		{systemd, "", "system.slice:cri-containerd:ID", "/system.slice/cri-containerd-ID.scope"},
		{systemd, "-.slice", "-.slice:cri-containerd:ID", "/cri-containerd-ID.scope"},
	} {
		if have := test.c.OCIPath(test.parent, "ID"); have != test.ociPath {
			t.Errorf("%s %q: OCI path %q, want %q", test.c.Driver(), test.parent, have, test.ociPath)
		}
		if have := test.c.Path(test.parent, "ID"); have != test.path {
			t.Errorf("%s %q: path %q, want %q", test.c.Driver(), test.parent, have, test.path)
		}
	}
	for _, parent := range []string{"/kubepods/pod1", "a--b.slice", "-a.slice", ".slice", "a-.slice"} {
		if err := systemd.Ensure(parent); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "slice") {
			t.Errorf("parent %q: %v", parent, err)
		}
	}
}

func TestProcsAreSorted(t *testing.T) {
	for name, c := range layouts(t) {
		t.Run(name, func(t *testing.T) {
			path := tempCgroup(t, c)
			leaf(t, c, path+"/x")
			var want []int
			for _, p := range []string{path + "/x", path + "/x", path + "/x"} {
				want = append(want, join(t, c, p, "exec sleep 1000").Process.Pid)
			}
			slices.Sort(want)
			have, err := c.Procs(path)
			must(t, err)
			if diff := cmp.Diff(want, have); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func BenchmarkCgroup(b *testing.B) {
	c, err := NewCgroups(CgroupfsDriver)
	must(b, err)
	path := tempCgroup(b, c)
	defer reportCPU(b)()
	for b.Loop() {
		must(b, c.Ensure(path+"/pod"))
		must(b, c.Remove(path))
	}
}
