package supervisor

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"berth/internal/logs"
	"berth/internal/supervisor/wire"
)

func newFleet(t *testing.T, state, version string) *Fleet {
	t.Helper()
	f, err := NewFleet(FleetOptions{Binary: binary, State: state, Version: version, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func fleetState(t *testing.T) string {
	t.Helper()
	state, err := os.MkdirTemp("", "bf-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(state); err != nil {
			t.Error(err)
		}
	})
	return state
}

// tasks is the Task API of a supervisor.
func tasks(t *testing.T, f *Fleet, name string) taskAPI.TTRPCTaskService {
	t.Helper()
	c, err := net.Dial("unix", strings.TrimPrefix(f.Endpoint(name), "ttrpc+unix://"))
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(c)
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return taskAPI.NewTTRPCTaskClient(client)
}

// launch starts a container that runs a script, and returns its stdio.
func launch(t *testing.T, f *Fleet, name, state, id, script string) logs.Options {
	t.Helper()
	bundle := filepath.Join(state, "bundles", id)
	for _, dir := range []string{"bin", "proc"} {
		if err := os.MkdirAll(filepath.Join(bundle, "rootfs", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, "rootfs/bin/busybox"), busybox, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	spec, err := json.Marshal(&specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/bin/busybox", "sh", "-c", script}, Cwd: "/"},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &specs.Linux{
			CgroupsPath: "/" + filepath.Base(state) + "-" + id, Resources: &specs.LinuxResources{},
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}},
		},
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, "config.json"), spec, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	o := logs.Options{Dir: filepath.Join(state, "stdio", id), ID: id, LogPath: filepath.Join(state, id+".log")}
	options, err := json.Marshal(wire.Options{Stdio: o.Dir, LogPath: o.LogPath})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Ensure(testContext(t), name, id); err != nil {
		t.Fatal(err)
	}
	api := tasks(t, f, name)
	_, err = api.Create(testContext(t), &taskAPI.CreateTaskRequest{ID: id, Bundle: bundle, Options: &anypb.Any{TypeUrl: wire.OptionsType, Value: options}})
	if err == nil {
		_, err = api.Start(testContext(t), &taskAPI.StartRequest{ID: id})
	}
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// gone tells whether a supervisor has ended and left nothing.
func gone(f *Fleet, name string) bool {
	_, err := os.Stat(wire.Home(f.opts.State, name))
	return os.IsNotExist(err)
}

// An upgraded daemon starts a supervisor of its own; the old one goes on with
// its containers and ends with the last.
func TestUpgrade(t *testing.T) {
	state := fleetState(t)
	old := newFleet(t, state, "v1")
	name := old.NodeName()
	launch(t, old, name, state, "c", "while true; do busybox sleep 0.01; done")
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	f := newFleet(t, state, "v2")
	left, err := f.Left()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{name}, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	for _, n := range []string{name, f.NodeName()} {
		if err := f.Ensure(testContext(t), n, ""); err != nil {
			t.Fatal(err)
		}
	}
	if f.NodeName() == name {
		t.Fatal("two versions have one supervisor")
	}
	if err := f.Release(name, ""); err != nil { // its container keeps it
		t.Fatal(err)
	}
	if task, err := f.Task(testContext(t), name, "c"); err != nil || task.Exited {
		t.Fatalf("%+v, %v", task, err)
	}
	if err := f.Delete(testContext(t), name, "c"); err != nil {
		t.Fatal(err)
	}
	within(t, "the old supervisor stays", func() bool { return gone(f, name) })
	if err := f.Ensure(testContext(t), f.NodeName(), "x"); err != nil {
		t.Error(err)
	}
}

// A supervisor that is killed is started again, with what was kept.
func TestFleetRestarts(t *testing.T) {
	state := fleetState(t)
	f := newFleet(t, state, "v1")
	name := f.PodName("pod")
	o := launch(t, f, name, state, "c", "trap 'exit 6' TERM; echo up; while true; do busybox sleep 0.01; done")
	if err := f.Keep(testContext(t), name, "c", o.Dir); err != nil {
		t.Fatal(err)
	}
	api := tasks(t, f, name)
	res, err := api.Connect(testContext(t), &taskAPI.ConnectRequest{ID: "c"})
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(int(res.ShimPid), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	within(t, "no supervisor", func() bool {
		task, err := f.Task(context.Background(), name, "c")
		return err == nil && task.PID == int(res.TaskPid)
	})
	api = tasks(t, f, name)
	if _, err := api.Kill(testContext(t), &taskAPI.KillRequest{ID: "c", Signal: uint32(unix.SIGTERM)}); err != nil {
		t.Fatal(err)
	}
	end, err := api.Wait(testContext(t), &taskAPI.WaitRequest{ID: "c"})
	if err != nil || end.ExitStatus != 6 {
		t.Errorf("exit status %d, %v; want 6", end.GetExitStatus(), err)
	}
	if err := f.Delete(testContext(t), name, "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Task(testContext(t), name, "c"); !errdefs.IsNotFound(err) {
		t.Errorf("after delete: %v", err)
	}
	if err := f.Release(name, "c"); err != nil {
		t.Fatal(err)
	}
	within(t, "it does not end", func() bool { return gone(f, name) })
}
