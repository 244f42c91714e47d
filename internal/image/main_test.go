package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"go.uber.org/goleak"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/engine"
	"berth/internal/steps"
	"berth/internal/testkit"
	"berth/internal/testkit/registrytest"
)

// kit is what the tests share: one containerd. Each test has images, a
// registry and a Store of its own.
var kit *engine.Engine

func TestMain(m *testing.M) {
	if which := os.Getenv(benchRegistryEnv); which != "" {
		if err := serveBench(which); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	testkit.Main(m, func() (func() error, error) {
		dir, err := os.MkdirTemp("", "berth-image-")
		if err != nil {
			return nil, err
		}
		kit, err = engine.StartEmbedded(context.Background(), engine.Options{
			Root: dir + "/root", State: dir + "/state", Socket: dir + "/state/c.sock", Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
		running := goleak.IgnoreCurrent()
		return func() error {
			leaked := goleak.Find(running)
			return errors.Join(leaked, leftovers(), kit.Close(), os.RemoveAll(dir))
		}, nil
	})
}

// leftovers are what the tests together left in containerd.
func leftovers() error {
	return testkit.Poll(context.Background(), 10*time.Second, func(ctx context.Context) string {
		left, err := contents(ctx, "")
		if err != nil {
			return err.Error()
		}
		return strings.Join(left, "\n")
	})
}

// contents is what containerd keeps after a collection of garbage.
func contents(ctx context.Context, part string) ([]string, error) {
	ctx = kit.Context(ctx)
	c := kit.Client()
	l, err := c.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		return nil, err
	}
	if err := c.LeasesService().Delete(ctx, l, leases.SynchronousDelete); err != nil {
		return nil, err
	}
	var all []string
	held, err := c.LeasesService().List(ctx)
	for _, l := range held {
		all = append(all, "lease "+l.ID)
	}
	records, lerr := c.ImageService().List(ctx)
	for _, r := range records {
		all = append(all, "image "+r.Name)
	}
	err = errors.Join(err, lerr,
		c.ContentStore().Walk(ctx, func(i content.Info) error {
			all = append(all, "content "+i.Digest.String())
			return nil
		}),
		c.SnapshotService("overlayfs").Walk(ctx, func(_ context.Context, i snapshots.Info) error {
			all = append(all, "snapshot "+i.Name)
			return nil
		}))
	return slices.DeleteFunc(all, func(s string) bool { return !strings.Contains(s, part) }), err
}

// noJournal keeps nothing: what a crash leaves is found without it.
type noJournal struct{}

func (noJournal) Begin(op, object, step string) error { return nil }
func (noJournal) End(op, object string) error         { return nil }

func newStore(t testing.TB, change func(*Options), failpoints string) *Store {
	t.Helper()
	f, err := steps.ParseFailpoints(failpoints)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	o := Options{
		Client: kit.Client(), Log: log,
		Steps:     steps.New(steps.Options{Journal: noJournal{}, Log: log, Failpoints: f}),
		InProcess: true, FSPath: "/fs", ProgressTimeout: 10 * time.Second,
	}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// newImage is an image that no other test has, with a layer of its own.
func newImage(t *testing.T, o testkit.ImageOptions) v1.Image {
	t.Helper()
	o.Salt += t.Name()
	o.Empty = true
	if o.Blobs == nil {
		o.Blobs = []int64{1000}
	}
	img, err := testkit.Image(o)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func push(t *testing.T, r *registrytest.Registry, repo string, img v1.Image) (byDigest string) {
	t.Helper()
	byDigest, err := r.Push(repo, img)
	if err != nil {
		t.Fatal(err)
	}
	return byDigest
}

// layerOf is the digest of the image's own layer.
func layerOf(t *testing.T, img v1.Image) string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	h, err := layers[len(layers)-1].Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func pullRequest(ref string) PullRequest {
	return PullRequest{Image: &runtime.ImageSpec{Image: ref}}
}

func mustPull(t *testing.T, s *Store, ref string) string {
	t.Helper()
	id, err := s.Pull(t.Context(), pullRequest(ref))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Remove(context.Background(), id); err != nil {
			t.Error(err)
		}
	})
	return id
}

// wantGone fails unless nothing in containerd is named by part.
func wantGone(t *testing.T, part string) {
	t.Helper()
	testkit.Until(t, 5*time.Second, func(ctx context.Context) string {
		left, err := contents(ctx, part)
		if err != nil {
			return err.Error()
		}
		if len(left) > 0 {
			return fmt.Sprintf("left behind: %q", left)
		}
		return ""
	})
}
