package engine

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// suite is what an engine must do, whichever it is.
var suite = []struct {
	name string
	run  func(*testing.T, *Engine)
}{
	{"Version", testVersion},
	{"Content", testContent},
	{"Snapshots", testSnapshots},
	{"ContainerRecord", testContainerRecord},
	{"MakeAndDropContainer", testMakeContainer},
	{"LeaseAndGC", testLeaseAndGC},
	{"Events", testEvents},
	{"Task", testTask},
}

func TestEmbedded(t *testing.T) {
	e := start(t, tempDir(t))
	if !e.Embedded() {
		t.Error("Embedded() = false")
	}
	for _, s := range suite {
		t.Run(s.name, func(t *testing.T) { s.run(t, e) })
	}
}

func TestExternal(t *testing.T) {
	e := connect(t, startContainerd(t))
	if e.Embedded() {
		t.Error("Embedded() = true")
	}
	for _, s := range suite {
		t.Run(s.name, func(t *testing.T) { s.run(t, e) })
	}
}

// The socket of the embedded engine is for ctr and its like.
func TestOverSocket(t *testing.T) {
	e := connect(t, start(t, tempDir(t)).Address())
	for _, s := range suite {
		t.Run(s.name, func(t *testing.T) { s.run(t, e) })
	}
}

var buildContainerd = sync.OnceValues(func() (string, error) {
	out, err := filepath.Abs("../../bin/test/containerd")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w",
		"-tags", "no_cri,no_btrfs,no_zfs,no_devmapper,no_tracing",
		"-o", out, "github.com/containerd/containerd/v2/cmd/containerd")
	cmd.Dir = "testdata/containerd"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building containerd: %w\n%s", err, text)
	}
	return out, nil
})

// startContainerd starts a containerd of its own for the test and returns its
// address.
func startContainerd(t *testing.T) string {
	t.Helper()
	binary, err := buildContainerd()
	if err != nil {
		t.Fatal(err)
	}
	dir := tempDir(t)
	socket := filepath.Join(dir, "c.sock")
	config := filepath.Join(dir, "config.toml")
	err = os.WriteFile(config, fmt.Appendf(nil, `version = 4
root = %q
state = %q
[plugins."io.containerd.server.v1.grpc"]
address = %q
[plugins."io.containerd.server.v1.ttrpc"]
address = %q
[plugins."io.containerd.shim.v1.manager"]
socket_dir = %q
`, dir+"/root", dir+"/run", socket, socket+".ttrpc", dir+"/s"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	log := &lines{}
	cmd := exec.Command(binary, "--config", config)
	cmd.Env = append(os.Environ(), "PATH="+libexec()+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			t.Log(log)
		}
	})
	return socket
}

func testVersion(t *testing.T, e *Engine) {
	v, err := e.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if v != "2.4.2" {
		t.Errorf("version %q", v)
	}
}

// leased is a context with a lease; without one, a collection may take what a
// test has just made.
func leased(t *testing.T, e *Engine) context.Context {
	t.Helper()
	ctx, done, err := e.Client().WithLease(e.Context(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := done(e.Context(context.Background())); err != nil {
			t.Error(err)
		}
	})
	return ctx
}

func testContent(t *testing.T, e *Engine) {
	ctx, store := leased(t, e), e.Client().ContentStore()
	blob := bytes.Repeat([]byte("berth"), 1<<18)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	if err := content.WriteBlob(ctx, store, "test", bytes.NewReader(blob), desc); err != nil {
		t.Fatal(err)
	}
	got, err := content.ReadBlob(ctx, store, desc)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, blob) {
		t.Error("another content was read than written")
	}
	wrong := ocispec.Descriptor{Digest: digest.FromString("other"), Size: desc.Size}
	if err := content.WriteBlob(ctx, store, "wrong", bytes.NewReader(blob), wrong); err == nil {
		t.Error("content with another digest was taken")
	}
	if err := store.Delete(ctx, desc.Digest); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Info(ctx, desc.Digest); !errdefs.IsNotFound(err) {
		t.Errorf("after removal: %v", err)
	}
}

func testSnapshots(t *testing.T, e *Engine) {
	for _, name := range snapshotterNames {
		t.Run(name, func(t *testing.T) {
			ctx, s := leased(t, e), e.Client().SnapshotService(name)
			lower, err := s.Prepare(ctx, "lower", "")
			if err != nil {
				t.Fatal(err)
			}
			err = mount.WithTempMount(ctx, lower, func(root string) error {
				return os.WriteFile(filepath.Join(root, "file"), []byte("lower"), 0o600)
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Commit(ctx, "layer", "lower"); err != nil {
				t.Fatal(err)
			}
			upper, err := s.Prepare(ctx, "upper", "layer")
			if err != nil {
				t.Fatal(err)
			}
			err = mount.WithTempMount(ctx, upper, func(root string) error {
				got, err := os.ReadFile(filepath.Join(root, "file"))
				if string(got) != "lower" {
					t.Errorf("read %q", got)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Prepare(ctx, "upper", "layer"); !errdefs.IsAlreadyExists(err) {
				t.Errorf("second prepare: %v", err)
			}
			if err := s.Remove(ctx, "layer"); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("removing a snapshot in use: %v", err)
			}
			for _, key := range []string{"upper", "layer"} {
				if err := s.Remove(ctx, key); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.Stat(ctx, "layer"); !errdefs.IsNotFound(err) {
				t.Errorf("after removal: %v", err)
			}
		})
	}
}

func testContainerRecord(t *testing.T, e *Engine) {
	ctx, store := e.Context(t.Context()), e.Client().ContainerService()
	spec, err := typeurl.MarshalAny(&eventstypes.ContainerCreate{})
	if err != nil {
		t.Fatal(err)
	}
	want := containers.Container{ID: "record", Labels: map[string]string{"a": "1"}, Spec: spec,
		Runtime: containers.RuntimeInfo{Name: "io.containerd.runc.v2"}}
	if _, err := store.Create(ctx, want); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Create(ctx, want); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
	want.Labels["a"] = "2"
	if _, err := store.Update(ctx, want, "labels"); err != nil {
		t.Fatal(err)
	}
	got, err := store.Get(ctx, "record")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.Labels, got.Labels); diff != "" {
		t.Error(diff)
	}
	if err := store.Delete(ctx, "record"); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Get(ctx, "record"); !errdefs.IsNotFound(err) {
		t.Errorf("after removal: %v", err)
	}
}

func testMakeContainer(t *testing.T, e *Engine) {
	ctx, client := e.Context(t.Context()), e.Client()
	spec, err := typeurl.MarshalAny(&eventstypes.ContainerCreate{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range snapshotterNames {
		t.Run(name, func(t *testing.T) {
			c := containers.Container{ID: "made", Spec: spec, Runtime: containers.RuntimeInfo{Name: "io.containerd.runc.v2"}, Snapshotter: name, SnapshotKey: "made"}
			there := func() (found [2]bool) {
				_, err := client.ContainerService().Get(ctx, "made")
				_, serr := client.SnapshotService(name).Stat(ctx, "made")
				return [2]bool{err == nil, serr == nil}
			}
			marks := map[string]string{"containerd.io/gc.root": "test", "mark": "m"}
			if _, err := e.MakeContainer(ctx, c, "no-such-layer", marks); !errdefs.IsNotFound(err) {
				t.Errorf("without the parent: %v", err)
			}
			mounts, err := e.MakeContainer(ctx, c, "", marks)
			if err != nil {
				t.Fatal(err)
			}
			if got := there(); got != [2]bool{true, true} {
				t.Errorf("made: %v", got)
			}
			if err := mount.WithTempMount(ctx, mounts, func(root string) error { return os.WriteFile(root+"/file", nil, 0o600) }); err != nil {
				t.Error(err)
			}
			if info, err := client.SnapshotService(name).Stat(ctx, "made"); err != nil || info.Labels["mark"] != "m" {
				t.Errorf("snapshot %v, %v", info, err)
			}
			if _, err := e.MakeContainer(ctx, c, "", marks); !errdefs.IsAlreadyExists(err) {
				t.Errorf("again: %v", err)
			}
			for range 2 {
				if err := e.DropContainer(ctx, "made", name); err != nil {
					t.Error(err)
				}
			}
			if got := there(); got != [2]bool{} {
				t.Errorf("dropped: %v", got)
			}
			// The half of it that a crash may leave.
			if _, err := client.SnapshotService(name).Prepare(ctx, "made", "", snapshots.WithLabels(marks)); err != nil {
				t.Fatal(err)
			}
			if err := e.DropContainer(ctx, "made", name); err != nil || there() != [2]bool{} {
				t.Errorf("a snapshot alone: %v", err)
			}
		})
	}
}

func testLeaseAndGC(t *testing.T, e *Engine) {
	ctx := e.Context(t.Context())
	client := e.Client()
	lease, err := client.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	held := leases.WithLease(ctx, lease.ID)
	blob := []byte("held")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	if err := content.WriteBlob(held, client.ContentStore(), "held", bytes.NewReader(blob), desc); err != nil {
		t.Fatal(err)
	}
	s := client.SnapshotService("overlayfs")
	if _, err := s.Prepare(held, "held", ""); err != nil {
		t.Fatal(err)
	}
	there := func() (content, snapshot bool) {
		_, err := client.ContentStore().Info(ctx, desc.Digest)
		_, serr := s.Stat(ctx, "held")
		return err == nil, serr == nil
	}
	collectNow(t, e)
	if c, s := there(); !c || !s {
		t.Errorf("collected what a lease holds: content %v, snapshot %v", c, s)
	}
	if err := client.LeasesService().Delete(ctx, lease, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
	if c, s := there(); c || s {
		t.Errorf("what nothing holds stays: content %v, snapshot %v", c, s)
	}
}

// collectNow runs a garbage collection to its end.
func collectNow(t *testing.T, e *Engine) {
	t.Helper()
	ctx := e.Context(t.Context())
	lease, err := e.Client().LeasesService().Create(ctx, leases.WithRandomID())
	if err == nil {
		err = e.Client().LeasesService().Delete(ctx, lease, leases.SynchronousDelete)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func testEvents(t *testing.T, e *Engine) {
	ctx, cancel := context.WithTimeout(e.Context(t.Context()), 20*time.Second)
	defer cancel()
	events, errs := e.Client().EventService().Subscribe(ctx, `topic~="/snapshot/"`)
	s := e.Client().SnapshotService("overlayfs")
	// A subscription over gRPC takes effect some time after the call.
	for i := 0; ; i++ {
		key := fmt.Sprintf("event-%d", i)
		if _, err := s.Prepare(ctx, key, "", keep()); err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(ctx, key); err != nil {
			t.Fatal(err)
		}
		select {
		case ev := <-events:
			if !strings.HasPrefix(ev.Topic, "/snapshot/") || ev.Namespace != Namespace {
				t.Errorf("event %s in namespace %s", ev.Topic, ev.Namespace)
			}
			cancel()
			<-errs // the subscription's goroutine has ended
			return
		case err := <-errs:
			t.Fatalf("no event: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
