package engine

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"berth/internal/host"
)

func snapshotsDir(dir, snapshotter string) string {
	return filepath.Join(dir, "root/io.containerd.snapshotter.v1."+snapshotter, "snapshots")
}

// names lists a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	list := []string{}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// nextDirectory is where the next snapshot will be: its number is one above
// the greatest.
func nextDirectory(t *testing.T, dir string) string {
	t.Helper()
	last := 0
	for _, name := range names(t, dir) {
		if n, err := strconv.Atoi(name); err == nil {
			last = max(last, n)
		}
	}
	return filepath.Join(dir, strconv.Itoa(last+1))
}

// leave makes what a transaction leaves that is killed between its rename and
// its commit.
func leave(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "fs/deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "fs/deep/file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// keep keeps a snapshot from being collected.
func keep() snapshots.Opt {
	return snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "test"})
}

func TestDirectoryOfAKilledTransaction(t *testing.T) {
	dir := tempDir(t)
	e := start(t, dir)
	ctx := e.Context(t.Context())
	s := e.Client().SnapshotService("overlayfs")
	if _, err := s.Prepare(ctx, "kept", "", keep()); err != nil {
		t.Fatal(err)
	}
	// That this is the directory that matters: without a start in between, the
	// next Prepare meets it.
	all := snapshotsDir(dir, "overlayfs")
	leave(t, nextDirectory(t, all))
	if _, err := s.Prepare(ctx, "next", "", keep()); err == nil || !strings.Contains(err.Error(), "file exists") {
		t.Fatalf("Prepare did not meet the directory: %v", err)
	}
	leave(t, nextDirectory(t, all))
	leave(t, filepath.Join(all, "new-123"))
	closeEngine(t, e)

	e = start(t, dir)
	if diff := cmp.Diff([]string{"1"}, names(t, all)); diff != "" {
		t.Error(diff)
	}
	if _, err := e.Client().SnapshotService("overlayfs").Prepare(ctx, "next", "", keep()); err != nil {
		t.Error(err)
	}
	if _, err := e.Client().SnapshotService("overlayfs").Stat(ctx, "kept"); err != nil {
		t.Error(err)
	}
}

// The database is gone, or was never written to: every directory is unknown.
func TestDirectoriesWithoutADatabase(t *testing.T) {
	dir := tempDir(t)
	leave(t, filepath.Join(snapshotsDir(dir, "native"), "1"))
	e := start(t, dir)
	s := e.Client().SnapshotService("native")
	if _, err := s.Prepare(e.Context(t.Context()), "first", ""); err != nil {
		t.Error(err)
	}
}

func TestSnapshotThatOnlyTheSnapshotterHas(t *testing.T) {
	dir := tempDir(t)
	e := start(t, dir)
	ctx := e.Context(t.Context())
	if _, err := e.Client().SnapshotService("overlayfs").Prepare(ctx, "kept", "", keep()); err != nil {
		t.Fatal(err)
	}
	bare := e.embedded.parts.snapshotters["overlayfs"]
	if _, err := bare.Prepare(ctx, "k8s.io/7/lost", ""); err != nil {
		t.Fatal(err)
	}
	closeEngine(t, e)

	e = start(t, dir)
	bare = e.embedded.parts.snapshotters["overlayfs"]
	if n, err := count(ctx, bare); n != 1 || err != nil {
		t.Errorf("%d snapshots, %v", n, err)
	}
	if diff := cmp.Diff([]string{"1"}, names(t, snapshotsDir(dir, "overlayfs"))); diff != "" {
		t.Error(diff)
	}
}

// An external containerd cannot be put right before it runs; its snapshots can
// be collected.
func TestSnapshotThatOnlyAnExternalSnapshotterHas(t *testing.T) {
	e := start(t, tempDir(t))
	bare := e.embedded.parts.snapshotters["overlayfs"]
	ctx := e.Context(t.Context())
	if _, err := bare.Prepare(ctx, "k8s.io/7/lost", ""); err != nil {
		t.Fatal(err)
	}
	connect(t, e.Address())
	if n, err := count(ctx, bare); n != 0 || err != nil {
		t.Errorf("%d snapshots, %v", n, err)
	}
}

// churn makes and removes snapshots until the process is killed.
func churn(e *Engine) error {
	for i := range 4 {
		go func() {
			ctx := namespaces.WithNamespace(context.Background(), Namespace)
			s := e.Client().SnapshotService("overlayfs")
			for n := 0; ; n++ {
				key := fmt.Sprintf("churn-%d-%d", i, n)
				if _, err := s.Prepare(ctx, key, "", keep()); err != nil && !errdefs.IsAlreadyExists(err) {
					fmt.Fprintln(os.Stderr, "prepare:", err)
				}
				if n > 0 {
					if err := s.Remove(ctx, fmt.Sprintf("churn-%d-%d", i, n-1)); err != nil && !errdefs.IsNotFound(err) {
						fmt.Fprintln(os.Stderr, "remove:", err)
					}
				}
			}
		}()
	}
	select {}
}

func TestKilledAmongMutations(t *testing.T) {
	dir := tempDir(t)
	for round := range 8 {
		d := startDaemon(t, dir, churnEnv+"=1")
		time.Sleep(time.Duration(5+rand.IntN(60)) * time.Millisecond) // when it is killed is the point
		d.kill()
		// What it said before is what its predecessor's death did to it.
		if text := d.log.String(); strings.Contains(text, "prepare:") || strings.Contains(text, "remove:") {
			t.Fatalf("round %d:\n%s", round, text)
		}
	}
	e := start(t, dir)
	ctx := e.Context(t.Context())
	n, err := count(ctx, e.Client().SnapshotService("overlayfs"))
	if err != nil {
		t.Fatal(err)
	}
	bare, err := count(ctx, e.embedded.parts.snapshotters["overlayfs"])
	if err != nil {
		t.Fatal(err)
	}
	if dirs := len(names(t, snapshotsDir(dir, "overlayfs"))); bare != n || dirs != n {
		t.Errorf("%d snapshots, of which the snapshotter has %d, in %d directories", n, bare, dirs)
	}
}

// What a kill leaves of bundles and shims.
func TestSweepShims(t *testing.T) {
	for _, tc := range []struct {
		name string
		// cut makes of a running container's bundle what a kill leaves.
		cut func(t *testing.T, bundle string)
	}{
		{"the bundle is gone", func(t *testing.T, bundle string) {
			if err := syscall.Unmount(filepath.Join(bundle, "rootfs"), 0); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(bundle); err != nil {
				t.Fatal(err)
			}
		}},
		{"the bundle does not name its shim's socket yet", func(t *testing.T, bundle string) {
			for _, f := range []string{"bootstrap.json", "shim-binary-path"} {
				if err := os.Remove(filepath.Join(bundle, f)); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := tempDir(t)
			d := startDaemon(t, dir)
			c := connect(t, filepath.Join(dir, "c.sock"))
			p := newPod(t, c)
			p.run(t, "orphan", "exec /bin/busybox sleep 1000")
			other := newPod(t, c)
			other.run(t, "runs", "exec /bin/busybox sleep 1000")
			orphan, runs := initOf(t, "orphan"), initOf(t, "runs")
			d.kill()
			closeEngine(t, c)
			bundles := filepath.Join(dir, "run/io.containerd.runtime.v2.task/k8s.io")
			tc.cut(t, filepath.Join(bundles, "orphan"))
			leave(t, filepath.Join(bundles, ".half"))
			work := filepath.Join(dir, "root/io.containerd.runtime.v2.task/k8s.io")
			leave(t, filepath.Join(work, "half"))
			socket := filepath.Join(dir, "run/s/stale")
			if err := syscall.Mknod(socket, syscall.S_IFSOCK|0o600, 0); err != nil {
				t.Fatal(err)
			}

			e := start(t, dir)
			if orphan.Alive() || !runs.Alive() {
				t.Errorf("orphan alive: %v, the other one: %v", orphan.Alive(), runs.Alive())
			}
			left := shims(t, e.Address())
			if len(left) != 1 {
				t.Errorf("%d shims", len(left))
			}
			for _, d := range []string{bundles, work} {
				if diff := cmp.Diff([]string{"runs"}, names(t, d)); diff != "" {
					t.Errorf("%s: %s", d, diff)
				}
			}
			if n := len(names(t, filepath.Join(dir, "run/s"))); n != 1 {
				t.Errorf("%d sockets", n)
			}
			other.e, p.e = e, e
			other.remove(t, "runs")
			p.remove(t, "orphan")
			ended(t, left)
			removeRunc(t, "orphan")
		})
	}
}

// removeRunc removes runc's own record of a container whose bundle is gone.
func removeRunc(t *testing.T, id string) {
	t.Helper()
	if err := host.RemoveTree("/run/containerd/runc/k8s.io", id); err != nil {
		t.Error(err)
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/berth-engine-*/" + id)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		if err := os.Remove(g); err != nil {
			t.Error(err)
		}
	}
}

// The container that a shim was started for is removed; the shim serves others
// of the pod, and is no orphan.
func TestSharedShimStays(t *testing.T) {
	dir := tempDir(t)
	d := startDaemon(t, dir)
	c := connect(t, filepath.Join(dir, "c.sock"))
	p := newPod(t, c)
	p.run(t, "first", "exec /bin/busybox sleep 1000")
	p.run(t, "second", "exec /bin/busybox sleep 1000")
	p.remove(t, "first")
	second := initOf(t, "second")
	d.quit()
	closeEngine(t, c)

	e := start(t, dir)
	left := shims(t, e.Address())
	if len(left) != 1 || !second.Alive() {
		t.Errorf("%d shims, container alive: %v", len(left), second.Alive())
	}
	p.e = e
	p.remove(t, "second")
	ended(t, left)
}

// A shim deleted a task, and the daemon was killed before it removed the
// bundle.
func TestTaskThatItsShimHasDeleted(t *testing.T) {
	dir := tempDir(t)
	d := startDaemon(t, dir)
	c := connect(t, filepath.Join(dir, "c.sock"))
	p := newPod(t, c)
	p.run(t, "first", "exec /bin/busybox sleep 1000")
	p.run(t, "second", "exec /bin/busybox sleep 1000")
	bundles := filepath.Join(dir, "run/io.containerd.runtime.v2.task/k8s.io")
	first := filepath.Join(bundles, "first")
	saved := map[string][]byte{}
	for _, f := range []string{"bootstrap.json", "init.pid", "shim-binary-path", "config.json"} {
		data, err := os.ReadFile(filepath.Join(first, f))
		if err != nil && f != "shim-binary-path" {
			t.Fatal(err)
		}
		if err == nil {
			saved[f] = data
		}
	}
	ctx := c.Context(t.Context())
	container, err := c.Client().LoadContainer(ctx, "first")
	if err != nil {
		t.Fatal(err)
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Kill(ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait(t, c, task)
	if _, err := task.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	d.kill()
	closeEngine(t, c)
	if err := os.MkdirAll(first, 0o700); err != nil {
		t.Fatal(err)
	}
	for f, data := range saved {
		if err := os.WriteFile(filepath.Join(first, f), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	e := start(t, dir)
	if diff := cmp.Diff([]string{"second"}, names(t, bundles)); diff != "" {
		t.Error(diff)
	}
	if records, err := e.Client().SandboxStore().List(ctx); len(records) > 0 || err != nil {
		t.Errorf("sandbox records stay: %v, %v", records, err)
	}
	p.e = e
	left := shims(t, e.Address())
	p.remove(t, "first")
	p.remove(t, "second")
	ended(t, left)
}

func TestBundleSocket(t *testing.T) {
	for _, tc := range []struct{ name, file, content, want string }{
		{"bootstrap.json", "bootstrap.json", `{"version":3,"address":"unix:///run/s/x","protocol":"ttrpc"}`, "/run/s/x"},
		{"cut short", "bootstrap.json", `{"version":3,"addr`, ""},
		{"of containerd 1", "address", "unix:///run/s/y\n", "/run/s/y"},
		{"not named yet", "config.json", "{}", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, tc.file), []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := bundleSocket(dir); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestSocketPaths(t *testing.T) {
	table := `Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 111 /run/s/a
0000000000000000: 00000003 00000000 00000000 0001 03 112 /run/s/a
0000000000000000: 00000003 00000000 00000000 0001 03 113
0000000000000000: 00000002 00000000 00010000 0001 01 114 /run/s/b
`
	got := socketPaths(table, map[string]bool{"111": true, "112": true, "113": true})
	if diff := cmp.Diff([]string{"/run/s/a"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestIsOurs(t *testing.T) {
	o := Options{Socket: "/run/c.sock"}
	for _, tc := range []struct {
		line string
		want bool
	}{
		{"/x/containerd-shim-runc-v2 -namespace k8s.io -id a -address /run/c.sock", true},
		{"/x/containerd-shim-runc-v2 -namespace k8s.io -id a -address /run/other.sock", false},
		{"ctr -address /run/c.sock -namespace k8s.io tasks ls", false},
		{"-address", false},
		{"sh -c -id -namespace -address", false},
	} {
		if got := o.isOurs(strings.Fields(tc.line)); got != tc.want {
			t.Errorf("%s: %v", tc.line, got)
		}
	}
}

func TestLogLevels(t *testing.T) {
	dir := tempDir(t)
	var buf bytes.Buffer
	log := slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: slog.LevelInfo}))
	e, err := StartEmbedded(t.Context(), optionsIn(dir, log))
	if err != nil {
		t.Fatal(err)
	}
	closeEngine(t, e)
	if buf.Len() > 0 {
		t.Errorf("a start has news:\n%s", &buf)
	}
	log = slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if e, err = StartEmbedded(t.Context(), optionsIn(dir, log)); err != nil {
		t.Fatal(err)
	}
	closeEngine(t, e)
	if got := buf.String(); !strings.Contains(got, "level=DEBUG") || !strings.Contains(got, "part=containerd") ||
		strings.Contains(got, "level=WARN") {
		t.Errorf("at debug:\n%s", got)
	}
}

func TestOptions(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, tc := range []struct {
		name string
		o    Options
		want string
	}{
		{"relative", Options{Root: "root", State: "/s", Socket: "/c", Log: log}, "Root"},
		{"no state", Options{Root: "/root", Socket: "/c", Log: log}, "State"},
		{"long socket", Options{Root: "/root", State: "/s", Socket: "/" + strings.Repeat("x", 99), Log: log}, "shorter"},
		{"no log", Options{Root: "/root", State: "/s", Socket: "/c"}, "Log"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := StartEmbedded(t.Context(), tc.o)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("err = %v", err)
			}
		})
	}
	short := Options{State: "/run/berth/containerd"}
	if got := short.socketDir(); got != "/run/berth/containerd/s" {
		t.Errorf("socket directory %s", got)
	}
	long := Options{State: "/" + strings.Repeat("x", 60)}
	if got := long.socketDir(); !strings.HasPrefix(got, shortSocketDir) || len(got) > maxSocketDir {
		t.Errorf("socket directory %s", got)
	}
}

func TestStartCloseStart(t *testing.T) {
	dir := tempDir(t)
	for range 3 {
		e := start(t, dir)
		info, err := os.Stat(e.Address())
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode != 0o660 {
			t.Errorf("socket's mode %o", mode)
		}
		closeEngine(t, e)
		closeEngine(t, e)
		if _, err := os.Stat(e.Address()); err == nil {
			t.Error("the socket stays")
		}
	}
}

func TestSideBySide(t *testing.T) {
	a, b := start(t, tempDir(t)), start(t, tempDir(t))
	ctx := a.Context(t.Context())
	if _, err := a.Client().SnapshotService("overlayfs").Prepare(ctx, "of-a", "", keep()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Client().SnapshotService("overlayfs").Stat(ctx, "of-a"); !errdefs.IsNotFound(err) {
		t.Errorf("the other engine has it: %v", err)
	}
	closeEngine(t, a)
	if _, err := b.Client().SnapshotService("overlayfs").Prepare(ctx, "of-b", "", keep()); err != nil {
		t.Error(err)
	}
}

func TestRootInUse(t *testing.T) {
	defer func(d time.Duration) { openTimeout = d }(openTimeout)
	openTimeout = 50 * time.Millisecond
	dir := tempDir(t)
	e := start(t, dir)
	log, _ := testLog(t)
	o := optionsIn(dir, log)
	o.Socket += "2"
	if _, err := StartEmbedded(t.Context(), o); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("err = %v", err)
	}
	// The one that failed has let go of what it opened.
	closeEngine(t, e)
	closeEngine(t, start(t, dir))
}

func TestConnectToNobody(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	log, _ := testLog(t)
	_, err := Connect(ctx, "unix:///nonexistent/c.sock", log)
	if err == nil || !strings.Contains(err.Error(), "is it running") {
		t.Errorf("err = %v", err)
	}
}

func TestPrependPath(t *testing.T) {
	t.Setenv("PATH", "/usr/bin:/bin")
	for range 2 {
		if err := prependPath([]string{"/a", "/b"}); err != nil {
			t.Fatal(err)
		}
	}
	if got := os.Getenv("PATH"); got != "/a:/b:/usr/bin:/bin" {
		t.Error(got)
	}
}
