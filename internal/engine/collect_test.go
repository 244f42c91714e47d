package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

// A collection waits for what is being made, and takes what nobody names.
func TestCollectionWaitsForWhatIsBeingMade(t *testing.T) {
	e := start(t, tempDir(t))
	ctx, p := e.Context(t.Context()), e.embedded.parts
	bare := p.snapshotters["overlayfs"]
	done := make(chan error, 1)
	err := e.embedded.uncollected(func() error {
		if _, err := bare.Prepare(ctx, "not-named-yet", ""); err != nil {
			return err
		}
		go func() { done <- e.collect(ctx, "overlayfs") }()
		for deadline := time.Now().Add(10 * time.Second); ; { // until the collection waits
			if !p.gate.TryRLock() {
				break
			}
			p.gate.RUnlock()
			if time.Now().After(deadline) {
				return context.DeadlineExceeded
			}
		}
		_, err := bare.Stat(ctx, "not-named-yet")
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := bare.Stat(ctx, "not-named-yet"); !errdefs.IsNotFound(err) {
		t.Errorf("what nobody named: %v", err)
	}
}

// Containers that are made and dropped while garbage is collected all have
// their snapshots, and none leaves a directory.
func TestContainersAndCollectionsSideBySide(t *testing.T) {
	dir := tempDir(t)
	e := start(t, dir)
	ctx := e.Context(t.Context())
	spec, err := typeurl.MarshalAny(&eventstypes.ContainerCreate{})
	if err != nil {
		t.Fatal(err)
	}
	marks := map[string]string{"containerd.io/gc.root": "test"}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := range 20 {
				c := containers.Container{ID: fmt.Sprintf("c-%d-%d", w, n), Spec: spec, Snapshotter: "overlayfs",
					Runtime: containers.RuntimeInfo{Name: "io.containerd.runc.v2"}}
				c.SnapshotKey = c.ID
				if _, err := e.MakeContainer(ctx, c, "", marks); err != nil {
					t.Error(err)
					return
				}
				if _, err := e.Client().SnapshotService("overlayfs").Mounts(ctx, c.ID); err != nil {
					t.Errorf("%s: %v", c.ID, err)
				}
				if err := e.DropContainer(ctx, c.ID, "overlayfs"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	made := make(chan struct{})
	go func() {
		wg.Wait()
		close(made)
	}()
	for going := true; going; {
		select {
		case <-made:
			going = false
		default:
		}
		if err := e.collect(ctx, "overlayfs"); err != nil {
			t.Error(err)
		}
	}
	left, err := os.ReadDir(filepath.Join(dir, "root", "io.containerd.snapshotter.v1.overlayfs", "snapshots"))
	if err != nil || len(left) > 0 {
		t.Errorf("directories that stay: %v, %v", left, err)
	}
}
