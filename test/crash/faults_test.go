package crash

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	_ "modernc.org/sqlite" // the record store's driver

	"berth/internal/testkit"
	"berth/internal/testkit/registrytest"
)

func sleeper(t *testing.T, p *testkit.Pod) *testkit.Container {
	t.Helper()
	return p.Container(t, busybox, []string{"sleep", "1000"})
}

// overwrite damages a row of the record store.
func overwrite(t *testing.T, d *testkit.Daemon, table, id string) {
	t.Helper()
	db, err := sql.Open("sqlite", d.Records())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // the statement is committed
	result, err := db.ExecContext(t.Context(), "UPDATE "+table+" SET body = x'7b22762261' WHERE id = ?", id)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := result.RowsAffected(); n != 1 || err != nil {
		t.Fatalf("%d rows, %v", n, err)
	}
}

func TestDamagedContainerRecord(t *testing.T) {
	d := testkit.StartDaemon(t, testkit.DaemonOptions{})
	c := d.Watched(t, busybox)
	p, other := c.Pod(t), c.Pod(t)
	hurt, well, unharmed := sleeper(t, p), sleeper(t, p), sleeper(t, other)
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	overwrite(t, d, "containers", hurt.ID)
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if log := d.Log(1000); !strings.Contains(log, "set aside") || !strings.Contains(log, hurt.ID) {
		t.Errorf("the log does not say so:\n%s", log)
	}
	for _, ctr := range []*testkit.Container{well, unharmed} {
		ctr.Exec(t, "true")
	}
	_, err := c.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: hurt.ID})
	testkit.WantCode(t, err, codes.NotFound, hurt.ID)
	if s := p.Status(t); s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("its pod: %v", s)
	}
	again, err := p.Create(t.Context(), hurt.Config)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	again.Exec(t, "true")
}

func TestDamagedSandboxRecord(t *testing.T) {
	d := testkit.StartDaemon(t, testkit.DaemonOptions{})
	c := d.Watched(t, busybox)
	hurt, other := c.Pod(t), c.Pod(t)
	lost, unharmed := sleeper(t, hurt), sleeper(t, other)
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	overwrite(t, d, "sandboxes", hurt.ID)
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	unharmed.Exec(t, "true")
	_, err := c.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: hurt.ID})
	testkit.WantCode(t, err, codes.NotFound, hurt.ID)
	// Its container has no pod that it could be stopped with.
	if err := lost.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	again, err := c.RunPod(t.Context(), hurt.Config)
	if err != nil {
		t.Fatal(err)
	}
	sleeper(t, again).Exec(t, "true")
	if err := again.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

// A store that is no database is set aside, and what it named removed.
func TestDamagedStore(t *testing.T) {
	d := testkit.StartDaemon(t, testkit.DaemonOptions{})
	c := d.Watched(t, busybox)
	p := c.Pod(t)
	sleeper(t, p)
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, side := range []string{"-wal", "-shm"} {
		if err := os.Remove(d.Records() + side); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(d.Records(), []byte(strings.Repeat("no database at all ", 5000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	list, err := c.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 0 {
		t.Errorf("pods: %v, %v", list, err)
	}
	aside, err := filepath.Glob(d.Records() + ".damaged-*")
	if err != nil || len(aside) == 0 {
		t.Fatalf("nothing set aside: %v", err)
	}
	for _, file := range aside {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
	}
	sleeper(t, c.Pod(t)).Exec(t, "true")
}

// smallDisk is a daemon whose root is a file system of its own.
func smallDisk(t *testing.T, size string) *testkit.Daemon {
	t.Helper()
	d, err := testkit.NewDaemon(testkit.DaemonOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := errors.Join(d.Stop(), unix.Unmount(d.Root, unix.MNT_DETACH), d.Close())
		if err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("tmpfs", d.Root, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

// fill leaves that many bytes of the disk.
func fill(t *testing.T, dir string, leave int64) (file string) {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "filler")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // it holds nothing
	if n := int64(fs.Bavail)*fs.Bsize - leave; n > 0 {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, n); err != nil {
			t.Fatal(err)
		}
	}
	return file
}

func TestFullDisk(t *testing.T) {
	d := smallDisk(t, "64m")
	c := d.Watched(t, busybox)
	unharmed := sleeper(t, c.Pod(t))
	refused := 0
	for _, leave := range []int64{0, 4 << 10, 16 << 10, 40 << 10, 100 << 10} {
		p := c.Pod(t)
		config := testkit.ContainerConfig(busybox, []string{"sleep", "1000"})
		file := fill(t, d.Root, leave)
		ctr, err := p.Create(t.Context(), config)
		if err == nil {
			err = ctr.Start(t.Context())
		}
		if err != nil {
			refused++
			if text := strings.ToLower(err.Error()); !strings.Contains(text, "no space") && !strings.Contains(text, "full") {
				t.Errorf("%d bytes left: the error does not say that the disk is full: %v", leave, err)
			}
		}
		unharmed.Exec(t, "true")
		if _, err := c.ListContainers(t.Context(), &cri.ListContainersRequest{}); err != nil {
			t.Errorf("%d bytes left: %v", leave, err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if ctr == nil {
			if ctr, err = p.Create(t.Context(), config); err != nil {
				t.Fatalf("%d bytes were left: the same call again: %v", leave, err)
			}
		}
		if err := ctr.Start(t.Context()); err != nil {
			t.Fatalf("%d bytes were left: the same call again: %v", leave, err)
		}
		ctr.Exec(t, "true")
	}
	// The record store's ballast leaves some room to containerd.
	if refused == 0 {
		t.Error("a full disk was never met")
	}
}

func TestFullDiskDuringPull(t *testing.T) {
	d := smallDisk(t, "64m")
	c := d.Watched(t, busybox)
	img, err := testkit.Image(testkit.ImageOptions{Empty: true, Blobs: []int64{4 << 20}, Salt: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Push("large:1", img); err != nil {
		t.Fatal(err)
	}
	unharmed := sleeper(t, c.Pod(t))
	file := fill(t, d.Root, 1<<20)
	if _, err := c.Pull(t.Context(), registry.Ref("large:1")); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("err = %v", err)
	}
	unharmed.Exec(t, "true")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pull(t.Context(), registry.Ref("large:1")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: registry.Ref("large:1")}}); err != nil {
		t.Error(err)
	}
}

// hanging is a daemon whose portmap hangs for pods named hang… while the flag
// is there.
func hanging(t *testing.T) (d *testkit.Daemon, flag string) {
	t.Helper()
	dir := t.TempDir()
	flag = filepath.Join(dir, "flag")
	d = testkit.StartDaemon(t, testkit.DaemonOptions{Config: map[string]any{
		"network.bin_dirs": []string{dir}, "network.timeout": "5s", "network.builtin": false, // the plugin that hangs is a program
	}})
	real := filepath.Join(d.Libexec(), "cni")
	for _, name := range []string{"bridge", "host-local", "loopback"} {
		if err := os.Symlink(filepath.Join(real, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf("#!/bin/sh\ncase \"$CNI_ARGS\" in *K8S_POD_NAME=hang*) [ -e %s ] && exec sleep 1000;; esac\nexec %s/portmap\n", flag, real)
	if err := os.WriteFile(filepath.Join(dir, "portmap"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return d, flag
}

func TestHangingPlugin(t *testing.T) {
	d, flag := hanging(t)
	c := d.Watched(t, busybox)
	raise := func() {
		t.Helper()
		if err := os.WriteFile(flag, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lower := func() {
		t.Helper()
		if err := os.Remove(flag); err != nil {
			t.Fatal(err)
		}
	}
	unharmed := sleeper(t, c.Pod(t))
	config := c.PodConfig("hang")

	raise()
	done := make(chan error, 1)
	begin := time.Now()
	go func() {
		_, err := c.RunPod(t.Context(), config)
		done <- err
	}()
	sleeper(t, c.Pod(t)).Exec(t, "true") // the others are not delayed
	unharmed.Exec(t, "true")
	err := <-done
	if err == nil || !strings.Contains(err.Error(), "portmap") || !strings.Contains(err.Error(), "did not end in time") {
		t.Errorf("ADD: err = %v", err)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("ADD: took %s", took)
	}
	lower()
	p, err := c.RunPod(t.Context(), config)
	if err != nil {
		t.Fatalf("the same call again: %v", err)
	}
	sleeper(t, p).Exec(t, "true")

	raise()
	if err := p.Remove(t.Context()); err == nil || !strings.Contains(err.Error(), "portmap") {
		t.Errorf("DEL: err = %v", err)
	}
	unharmed.Exec(t, "true")
	lower()
	if err := p.Remove(t.Context()); err != nil {
		t.Errorf("the same call again: %v", err)
	}
}

// The daemon is killed while a plugin hangs: the next one ends the plugin and
// undoes what it did.
func TestKilledWhileAPluginHangs(t *testing.T) {
	d, flag := hanging(t)
	c := d.Watched(t, busybox)
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	config := c.PodConfig("hang")
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = c.RunPod(t.Context(), config) // the daemon is killed
	}()
	testkit.Until(t, 10*time.Second, func(ctx context.Context) string {
		now, err := d.Host(ctx)
		if err != nil {
			return err.Error()
		}
		if !strings.Contains(now, "sleep: sleep 1000") {
			return "the plugin does not hang yet"
		}
		return ""
	})
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	<-done
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, err := c.RunPod(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	sleeper(t, p).Exec(t, "true")
	if err := p.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRegistryBreaksOff(t *testing.T) {
	own := registrytest.Own(t)
	d := testkit.StartDaemon(t, testkit.DaemonOptions{Config: map[string]any{"registry.progress_timeout": "1s"}})
	c := d.Watched(t, busybox)
	img, err := testkit.Image(testkit.ImageOptions{Blobs: []int64{1 << 20}, Salt: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := own.Push("app:1", img); err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	layer, err := layers[len(layers)-1].Digest()
	if err != nil {
		t.Fatal(err)
	}
	unharmed := sleeper(t, c.Pod(t))
	for _, tc := range []struct {
		name  string
		fault registrytest.Fault
		text  string
	}{
		{"cut, then gone", registrytest.Fault{Match: layer.String(), CutAfter: 300_000, Times: 1, Then: 503}, "unexpected EOF"},
		{"hangs", registrytest.Fault{Match: layer.String(), HangAfter: 300_000}, "no progress for 1s"},
	} {
		own.Fail(tc.fault)
		if _, err := c.Pull(t.Context(), own.Ref("app:1")); err == nil || !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), own.Ref("app:1")) {
			t.Errorf("%s: err = %v", tc.name, err)
		}
		unharmed.Exec(t, "true")
		own.Heal()
	}
	// The daemon is killed in the middle of a layer.
	own.Fail(registrytest.Fault{Match: layer.String(), HangAfter: 300_000, Times: 1})
	asked := own.Requests(http.MethodGet, layer.String())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = c.Pull(t.Context(), own.Ref("app:1")) // the daemon is killed
	}()
	testkit.Until(t, 10*time.Second, func(context.Context) string {
		if own.Requests(http.MethodGet, layer.String()) == asked {
			return "the layer is not asked for"
		}
		return ""
	})
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	<-done
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pull(t.Context(), own.Ref("app:1")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: own.Ref("app:1")}}); err != nil {
		t.Error(err)
	}
}
