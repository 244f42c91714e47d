package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"

	"berth/internal/host"
)

const runcShim = "io.containerd.runc.v2"

// A pod is containers that share one shim, as the containers of a real one do.
type pod struct {
	e    *Engine
	name string
	// dir is for FIFOs.
	dir string
}

// newPod gives a name that no other test has. Its cgroups are removed at the
// end.
func newPod(t *testing.T, e *Engine) *pod {
	t.Helper()
	p := &pod{e: e, name: fmt.Sprintf("berth-engine-%d-%d", os.Getpid(), time.Now().UnixNano()), dir: tempDir(t)}
	t.Cleanup(func() {
		groups, err := filepath.Glob("/sys/fs/cgroup/*/" + p.name)
		if err != nil {
			t.Error(err)
		}
		for _, g := range groups {
			if err := os.Remove(g); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
		}
	})
	return p
}

// create makes a container of busybox that runs script, without starting it.
func (p *pod) create(t *testing.T, id, script string, stdout *lines) containerd.Task {
	t.Helper()
	if _, err := os.Stat(filepath.Join(libexec(), "containerd-shim-runc-v2")); err != nil {
		t.Fatalf("run `make runtimes` first: %v", err)
	}
	ctx, client := p.e.Context(t.Context()), p.e.Client()
	mounts, err := client.SnapshotService("overlayfs").Prepare(ctx, id, "", keep())
	if err != nil {
		t.Fatal(err)
	}
	if err := mount.WithTempMount(ctx, mounts, installBusybox); err != nil {
		t.Fatal(err)
	}
	c, err := client.NewContainer(ctx, id, containerd.WithSnapshotter("overlayfs"), containerd.WithSnapshot(id),
		containerd.WithRuntime(runcShim, nil),
		containerd.WithNewSpec(
			oci.WithProcessArgs("/bin/busybox", "sh", "-c", script), oci.WithRootFSPath("rootfs"),
			oci.WithHostNamespace("network"), withoutLimits, oci.WithCgroup("/"+p.name+"/"+id),
			oci.WithAnnotations(map[string]string{"io.kubernetes.cri.sandbox-id": p.name})))
	if err != nil {
		t.Fatal(err)
	}
	creator := cio.NullIO
	if stdout != nil {
		creator = cio.NewCreator(cio.WithStreams(nil, stdout, stdout), cio.WithFIFODir(p.dir))
	}
	task, err := c.NewTask(ctx, creator)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

// useTempMounts has this process mount elsewhere than in the root of an engine
// that it had before.
func useTempMounts(t *testing.T) {
	t.Helper()
	if err := mount.SetTempMountLocation(t.TempDir()); err != nil {
		t.Fatal(err)
	}
}

func installBusybox(root string) error {
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	for _, dir := range []string{"bin", "proc", "dev", "sys", "tmp", "run"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(root, "bin/busybox"), data, 0o755)
}

// run makes and starts a container.
func (p *pod) run(t *testing.T, id, script string) containerd.Task {
	t.Helper()
	task := p.create(t, id, script, nil)
	if err := task.Start(p.e.Context(t.Context())); err != nil {
		t.Fatal(err)
	}
	return task
}

// remove removes a container with all it has.
func (p *pod) remove(t *testing.T, id string) {
	t.Helper()
	ctx := p.e.Context(t.Context())
	c, err := p.e.Client().LoadContainer(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if task, err := c.Task(ctx, nil); err == nil {
		if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil {
			t.Error(err)
		}
	} else if !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if err := c.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
		t.Error(err)
	}
}

// wait returns a task's exit code once it has ended.
func wait(t *testing.T, e *Engine, task containerd.Task) uint32 {
	t.Helper()
	ctx, cancel := context.WithTimeout(e.Context(t.Context()), 20*time.Second)
	defer cancel()
	exit, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	status := <-exit
	if status.Error() != nil {
		t.Fatal(status.Error())
	}
	return status.ExitCode()
}

// withoutLimits takes out the limits that containerd's own spec has, for
// berth's has none.
func withoutLimits(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
	s.Process.Rlimits = nil
	return nil
}

// shims are the shim processes of the engine at socket.
func shims(t *testing.T, socket string) []host.Process {
	t.Helper()
	o := Options{Socket: socket}
	list, err := host.FindProcesses(o.isOurs)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// ended waits for processes to end.
func ended(t *testing.T, list []host.Process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, p := range list {
		if err := p.Wait(ctx); err != nil {
			t.Error(err)
		}
	}
}

func testTask(t *testing.T, e *Engine) {
	ctx, p := e.Context(t.Context()), newPod(t, e)
	var out lines
	ends := p.create(t, "ends", "echo hello; exit 7", &out)
	if n := len(shims(t, e.Address())); n != 1 {
		t.Errorf("%d shims", n)
	}
	exit, err := ends.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := ends.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if status := <-exit; status.ExitCode() != 7 {
		t.Errorf("exit code %d, error %v", status.ExitCode(), status.Error())
	}
	runs := p.run(t, "runs", "exec /bin/busybox sleep 1000")
	all := shims(t, e.Address())
	if len(all) != 1 {
		t.Errorf("%d shims for one pod", len(all))
	}
	if err := runs.Kill(ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := wait(t, e, runs); code != 137 {
		t.Errorf("exit code %d after SIGKILL", code)
	}
	ends.IO().Wait()
	ends.IO().Close()
	if got := out.String(); got != "hello\n" {
		t.Errorf("output %q", got)
	}
	p.remove(t, "ends")
	p.remove(t, "runs")
	ended(t, all)
}

// A daemon that is killed takes no container with it, and the next one adopts
// them. What ended meanwhile keeps its exit code.
func TestContainersOutliveTheDaemon(t *testing.T) {
	dir := tempDir(t)
	d := startDaemon(t, dir)
	c := connect(t, filepath.Join(dir, "c.sock"))
	ctx := c.Context(t.Context())
	p := newPod(t, c)
	runs := p.run(t, "runs", "trap 'exit 3' TERM; while :; do /bin/busybox sleep 1000 & wait; done")
	p.run(t, "ends", "while ! [ -e /go ]; do /bin/busybox usleep 1000; done; exit 7")
	other := newPod(t, c)
	other.run(t, "alone", "while ! [ -e /go ]; do /bin/busybox usleep 1000; done; exit 9")
	all := shims(t, c.Address())
	if len(all) != 2 {
		t.Fatalf("%d shims for two pods", len(all))
	}

	d.kill()
	for _, id := range []string{"ends", "alone"} {
		proc := initOf(t, id)
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/root/go", proc.PID), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		ended(t, []host.Process{proc})
	}
	closeEngine(t, c)

	e := start(t, dir)
	for _, s := range all {
		if !s.Alive() {
			t.Errorf("shim %d is gone", s.PID)
		}
	}
	for id, want := range map[string]uint32{"ends": 7, "alone": 9} {
		container, err := e.Client().LoadContainer(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		task, err := container.Task(ctx, nil)
		if err != nil {
			t.Errorf("%s: %v", id, err)
			continue
		}
		status, err := task.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if status.Status != containerd.Stopped || status.ExitStatus != want || status.ExitTime.IsZero() {
			t.Errorf("%s: %+v", id, status)
		}
	}
	container, err := e.Client().LoadContainer(ctx, "runs")
	if err != nil {
		t.Fatal(err)
	}
	again, err := container.Task(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if again.Pid() != runs.Pid() {
		t.Errorf("pid %d, was %d", again.Pid(), runs.Pid())
	}
	if err := again.Kill(ctx, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := wait(t, e, again); code != 3 {
		t.Errorf("exit code %d", code)
	}
	p.e, other.e = e, e
	p.remove(t, "runs")
	p.remove(t, "ends")
	other.remove(t, "alone")
	ended(t, all)
}

// initOf finds a container's first process by its cgroup.
func initOf(t *testing.T, id string) host.Process {
	t.Helper()
	files, err := filepath.Glob("/sys/fs/cgroup/pids/berth-engine-*/" + id + "/cgroup.procs")
	if err != nil || len(files) != 1 {
		t.Fatalf("cgroups of %s: %v, %v", id, files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(strings.Fields(string(data))[0], &pid); err != nil {
		t.Fatal(err)
	}
	proc, err := host.ProcessOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	return proc
}

// The daemon, its shims and runc raise their own soft limit of open files as Go
// programs do; a container has the one that the daemon was started with.
func TestContainersKeepTheSoftLimit(t *testing.T) {
	dir := tempDir(t)
	startDaemon(t, dir)
	c := connect(t, filepath.Join(dir, "c.sock"))
	p := newPod(t, c)
	p.run(t, "limited", "exec /bin/busybox sleep 1000")
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", initOf(t, "limited").PID))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^Max open files +` + softFiles + ` `).Match(limits) {
		t.Errorf("limits:\n%s", limits)
	}
	p.remove(t, "limited")
}
