package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"berth/internal/steps"
	"berth/internal/testkit"
	"berth/internal/testkit/registrytest"
)

func archiveOf(t *testing.T, write func(io.Writer, map[string]v1.Image) error, images map[string]v1.Image) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := write(&buf, images); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestLoad(t *testing.T) {
	img := newImage(t, testkit.ImageOptions{Cmd: []string{"one"}})
	other := newImage(t, testkit.ImageOptions{Cmd: []string{"two"}})
	for _, tc := range []struct {
		name    string
		archive []byte
		want    []string
	}{
		{"docker", archiveOf(t, testkit.DockerArchive, map[string]v1.Image{"load.test/app:1": img}), []string{"load.test/app:1"}},
		{"docker, gzip", gzipped(t, archiveOf(t, testkit.DockerArchive, map[string]v1.Image{"load.test/app:1": img})), []string{"load.test/app:1"}},
		{"docker, short name", archiveOf(t, testkit.DockerArchive, map[string]v1.Image{"app:2": img}), []string{"docker.io/library/app:2"}},
		{"oci", archiveOf(t, testkit.OCIArchive, map[string]v1.Image{"load.test/app:1": img}), []string{"load.test/app:1"}},
		{"oci, two images", archiveOf(t, testkit.OCIArchive, map[string]v1.Image{"load.test/a:1": img, "load.test/b:1": other}), []string{"load.test/a:1", "load.test/b:1"}},
		{"oci, a tag without a name", archiveOf(t, testkit.OCIArchive, map[string]v1.Image{"latest": img}), []string{testkit.ID(img)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStore(t, nil, "")
			names, err := s.Load(t.Context(), bytes.NewReader(tc.archive))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, names); diff != "" {
				t.Error(diff)
			}
			for _, name := range names {
				got, err := s.Get(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := kit.Client().SnapshotService("overlayfs").Stat(kit.Context(t.Context()), got.ChainID); err != nil {
					t.Errorf("%s is not unpacked: %v", name, err)
				}
				if err := s.Remove(t.Context(), name); err != nil {
					t.Error(err)
				}
			}
			wantGone(t, layerOf(t, img))
			wantGone(t, "load")
		})
	}
}

func second(_ int, err error) error { return err }

func TestLoadRefuses(t *testing.T) {
	img := newImage(t, testkit.ImageOptions{Blobs: []int64{50_000}})
	good := archiveOf(t, testkit.OCIArchive, map[string]v1.Image{"load.test/app:1": img})
	var zeros bytes.Buffer
	w := tar.NewWriter(&zeros)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "blobs/zeros", Mode: 0o644, Size: 100_000}), second(w.Write(make([]byte, 100_000))), w.Close()); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		archive []byte
		limit   int64
		kind    func(error) bool
	}{
		{name: "empty", kind: errdefs.IsInvalidArgument},
		{name: "no archive", archive: []byte(strings.Repeat("no tar at all ", 1000)), kind: errdefs.IsInvalidArgument},
		{name: "no gzip behind the magic", archive: []byte("\x1f\x8b\x08 and then nonsense"), kind: errdefs.IsInvalidArgument},
		{name: "cut", archive: good[:len(good)/2], kind: errdefs.IsInvalidArgument},
		{name: "too large", archive: good, limit: 10_000, kind: errdefs.IsResourceExhausted},
		{name: "too large unpacked", archive: gzipped(t, zeros.Bytes()), limit: 10_000, kind: errdefs.IsResourceExhausted},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStore(t, func(o *Options) { o.MaxArchive = tc.limit }, "")
			_, err := s.Load(t.Context(), bytes.NewReader(tc.archive))
			if !tc.kind(err) {
				t.Errorf("err = %v", err)
			}
			wantGone(t, "")
		})
	}
}

func TestGet(t *testing.T) {
	r, s := registrytest.Own(t), newStore(t, nil, "")
	byDigest := push(t, r, "app:latest", newImage(t, testkit.ImageOptions{}))
	id := mustPull(t, s, r.Ref("app"))
	for _, ref := range []string{id, id[7:], id[:30], id[7:15], r.Ref("app"), r.Ref("app:latest"), byDigest} {
		if got, err := s.Get(t.Context(), ref); err != nil || got.ID != id {
			t.Errorf("%s: %v, %v", ref, got, err)
		}
	}
	for ref, is := range map[string]func(error) bool{
		"":                                      errdefs.IsInvalidArgument,
		"repo/UPPER":                            errdefs.IsInvalidArgument,
		r.Ref("app@sha256:12"):                  errdefs.IsInvalidArgument,
		r.Ref("app:2"):                          errdefs.IsNotFound,
		"sha256:" + strings.Repeat("0", 64):     errdefs.IsNotFound,
		strings.Repeat("0", 12):                 errdefs.IsNotFound,
		"app@sha256:" + strings.Repeat("0", 64): errdefs.IsNotFound,
	} {
		if _, err := s.Get(t.Context(), ref); !is(err) {
			t.Errorf("%q: %v", ref, err)
		}
	}
}

func TestFindAmbiguousPrefix(t *testing.T) {
	byID := map[string]*Image{}
	for _, id := range []string{"sha256:ab" + strings.Repeat("1", 62), "sha256:ab" + strings.Repeat("2", 62)} {
		byID[id] = &Image{ID: id}
	}
	if _, err := find(byID, "ab"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("err = %v", err)
	}
	if got, err := find(byID, "ab1"); err != nil || got.ID[9] != '1' {
		t.Errorf("%v, %v", got, err)
	}
	byID["x"] = &Image{ID: "x", names: []string{"docker.io/library/ab:latest"}}
	if got, err := find(byID, "ab"); err != nil || got.ID != "x" {
		t.Errorf("a name goes before a prefix: %v, %v", got, err)
	}
}

func TestPinned(t *testing.T) {
	r := registrytest.Own(t)
	s := newStore(t, func(o *Options) { o.Pinned = []string{r.Ref("keep:1"), r.Ref("base/") + "*"} }, "")
	for repo, want := range map[string]bool{"keep:1": true, "base/x:1": true, "other:1": false} {
		push(t, r, repo, newImage(t, testkit.ImageOptions{Salt: repo}))
		id := mustPull(t, s, r.Ref(repo))
		got, err := s.Get(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if got.Proto.Pinned != want {
			t.Errorf("%s: pinned is %v", repo, got.Proto.Pinned)
		}
	}
}

func TestFsInfo(t *testing.T) {
	r, s := registrytest.Own(t), newStore(t, nil, "")
	push(t, r, "app:1", newImage(t, testkit.ImageOptions{Blobs: []int64{300_000}}))
	mustPull(t, s, r.Ref("app:1"))
	got, err := s.FsInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].FsId.Mountpoint != "/fs" || got[0].UsedBytes.Value < 300_000 || got[0].InodesUsed.Value < 2 || got[0].Timestamp == 0 {
		t.Errorf("got %v", got)
	}
	writable, err := s.ContainerFsInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(writable) != 1 || writable[0].UsedBytes.Value >= got[0].UsedBytes.Value {
		t.Errorf("got %v", writable)
	}
}

// layers is a snapshotter of which each Usage waits for a token, where pace is
// set, and fails while fail is set.
type layers struct {
	snapshots.Snapshotter
	pace chan struct{}

	mu    sync.Mutex // guards the rest
	fail  map[string]error
	asked map[string]int
}

func (l *layers) Usage(ctx context.Context, name string) (snapshots.Usage, error) {
	l.mu.Lock()
	l.asked[name]++
	err := l.fail[name]
	l.mu.Unlock()
	if l.pace != nil {
		select {
		case <-l.pace:
		case <-ctx.Done():
			return snapshots.Usage{}, ctx.Err()
		}
	}
	if err != nil {
		return snapshots.Usage{}, err
	}
	return snapshots.Usage{Size: 1000, Inodes: 1}, nil
}

func (l *layers) Walk(ctx context.Context, fn snapshots.WalkFunc, _ ...string) error {
	for name, kind := range map[string]snapshots.Kind{"layer": snapshots.KindCommitted, "box": snapshots.KindActive} {
		if err := fn(ctx, snapshots.Info{Name: name, Kind: kind}); err != nil {
			return err
		}
	}
	return nil
}

func withLayers(t *testing.T, l *layers) *Store {
	t.Helper()
	l.asked = map[string]int{}
	client, err := containerd.New("", containerd.WithServices(containerd.WithSnapshotters(map[string]snapshots.Snapshotter{"overlayfs": l})))
	if err != nil {
		t.Fatal(err)
	}
	return newStore(t, func(o *Options) { o.Client = client }, "")
}

// A walk that takes longer than any caller waits still gives an answer.
func TestFsInfoGoesOnWithoutItsCaller(t *testing.T) {
	l := &layers{pace: make(chan struct{})}
	s := withLayers(t, l)
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := s.FsInfo(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("err = %v", err)
			}
		})
		testkit.Until(t, 5*time.Second, func(context.Context) string {
			l.mu.Lock()
			defer l.mu.Unlock()
			if len(l.asked) == 0 {
				return "the walk has not begun"
			}
			return ""
		})
		cancel()
		wg.Wait()
	}
	close(l.pace)
	got, err := s.FsInfo(t.Context())
	if err != nil || got[0].UsedBytes.Value != 2000 {
		t.Fatalf("got %v, %v", got, err)
	}
	if diff := cmp.Diff(map[string]int{"layer": 1, "box": 1}, l.asked); diff != "" {
		t.Error(diff)
	}
}

func TestFsInfoServesTheLastFiguresMeanwhile(t *testing.T) {
	l := &layers{}
	s := withLayers(t, l)
	if _, err := s.FsInfo(t.Context()); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	s.usage.mu.Lock()
	s.usage.sum.at = old
	s.usage.mu.Unlock()
	l.pace = make(chan struct{})
	got, err := s.FsInfo(t.Context())
	if err != nil || got[0].UsedBytes.Value != 2000 || got[0].Timestamp != old.UnixNano() {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestAFileThatVanishesHidesNoFigures(t *testing.T) {
	gone := &os.PathError{Op: "lstat", Path: "/x", Err: unix.ENOENT}
	for name, err := range map[string]error{"in process": gone, "over gRPC": errgrpc.ToNative(errgrpc.ToGRPC(gone))} {
		t.Run(name, func(t *testing.T) {
			l := &layers{fail: map[string]error{"box": err}}
			s := withLayers(t, l)
			got, err := s.FsInfo(t.Context())
			if err != nil || got[0].UsedBytes.Value != 1000 {
				t.Errorf("never measured: %v, %v", got, err)
			}
			if n := l.asked["box"]; n != measureTries {
				t.Errorf("asked %d times", n)
			}
			s.usage.learn("box", snapshots.Usage{Size: 500})
			s.usage.sum.at = time.Time{}
			if got, err = s.FsInfo(t.Context()); err != nil || got[0].UsedBytes.Value != 1500 {
				t.Errorf("measured before: %v, %v", got, err)
			}
			if n := l.asked["layer"]; n != 1 {
				t.Errorf("a committed layer was asked for %d times", n)
			}
		})
	}
}

func TestSweepRemovesWhatACrashLeft(t *testing.T) {
	r, s := registrytest.Own(t), newStore(t, nil, "")
	ctx := kit.Context(context.Background())
	manager := kit.Client().LeasesService()
	ours, others := pullLease("crashed.test/app:1"), "somebody-elses"
	for _, id := range []string{ours, others} {
		if _, err := manager.Create(ctx, leases.WithID(id)); err != nil {
			t.Fatal(err)
		}
	}
	// A pull that is under way keeps its lease.
	img := newImage(t, testkit.ImageOptions{})
	push(t, r, "app:1", img)
	if err := s.takeLease(ctx, pullLease(r.Ref("app:1"))); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	left, err := contents(t.Context(), "lease")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(left, " ")
	if strings.Contains(text, ours) || !strings.Contains(text, others) || !strings.Contains(text, pullLease(r.Ref("app:1"))) {
		t.Errorf("left: %q", left)
	}
	if err := s.dropLease(ctx, pullLease(r.Ref("app:1"))); err != nil {
		t.Error(err)
	}
	if err := manager.Delete(ctx, leases.Lease{ID: others}); err != nil {
		t.Error(err)
	}
}

// journal keeps in memory what is under way.
type journal struct {
	mu      sync.Mutex // guards entries
	entries map[[2]string]bool
}

func (j *journal) Begin(op, object, _ string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries[[2]string{op, object}] = true
	return nil
}

func (j *journal) End(op, object string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.entries, [2]string{op, object})
	return nil
}

func (j *journal) list() [][2]string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Collect(maps.Keys(j.entries))
}

// The reconciler undoes what a crash cut when a kubelet has already asked for
// the image again.
func TestUndoLeavesTheRetryAlone(t *testing.T) {
	r := registrytest.Own(t)
	push(t, r, "app:1", newImage(t, testkit.ImageOptions{}))
	r.Fail(registrytest.Fault{Match: "/manifests/", Delay: time.Hour})
	j := &journal{entries: map[[2]string]bool{}}
	runner := steps.New(steps.Options{Journal: j, Log: slog.New(slog.DiscardHandler)})
	var wg sync.WaitGroup
	hang := func(nth int) *Store {
		s := newStore(t, func(o *Options) { o.Steps = runner }, "")
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), pullRequest(r.Ref("app:1"))); err == nil {
				t.Error("the pull succeeded")
			}
		})
		testkit.Until(t, 5*time.Second, func(context.Context) string {
			if r.Requests(http.MethodHead, "/manifests/1") < nth {
				return "the pull has not begun"
			}
			return ""
		})
		return s
	}
	dead := hang(1)
	cut := j.list()
	s := hang(2)
	for _, u := range cut {
		if err := runner.Undo(t.Context(), u[0], u[1], s.Undo(u[0], u[1])...); err != nil {
			t.Error(err)
		}
	}
	if err := s.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if n := len(j.list()); n != 1 {
		t.Errorf("the journal has %d entries, want that of the retry", n)
	}
	if left, err := contents(t.Context(), pullLease(r.Ref("app:1"))); err != nil || len(left) != 1 {
		t.Errorf("leases: %q, %v, want that of the retry", left, err)
	}
	if err := errors.Join(s.Close(), dead.Close()); err != nil {
		t.Error(err)
	}
	wg.Wait()
	wantGone(t, pullLease(r.Ref("app:1")))
}

func TestInfo(t *testing.T) {
	r, s := registrytest.Own(t), newStore(t, nil, "")
	push(t, r, "app:1", newImage(t, testkit.ImageOptions{Env: []string{"A=b=c"}}))
	id := mustPull(t, s, r.Ref("app:1"))
	img, err := s.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	info, err := img.Info()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"chainID":"` + img.ChainID, `"imageSpec":{`, `"A=b=c"`} {
		if !strings.Contains(info["info"], want) {
			t.Errorf("no %s in %s", want, info["info"])
		}
	}
	all, err := s.List(t.Context())
	if err != nil || len(all) != 1 || all[0].Id != id {
		t.Errorf("list: %v, %v", all, err)
	}
}
