package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// What a kill leaves in a snapshotter, and what is done about it:
//
//   - A directory snapshots/new-*, or snapshots/N whose transaction was not
//     committed. The number N is used again, and the next Prepare fails with
//     "failed to rename: file exists". Before the server starts, directories
//     that the snapshotter's database does not name are removed.
//   - A snapshot that the snapshotter has and containerd's database has not.
//     containerd finds it only after some other snapshot was removed. Once the
//     server is up, the two are compared, and where they differ a collection
//     is brought about.

// snapshotterNames are the snapshotters that are embedded.
var snapshotterNames = []string{"overlayfs", "native"}

// repairBefore puts right what can only be put right before containerd runs.
func (o *Options) repairBefore(ctx context.Context) error {
	for _, name := range snapshotterNames {
		root := filepath.Join(o.Root, string(plugins.SnapshotPlugin)+"."+name)
		if err := o.sweepDirectories(ctx, root); err != nil {
			return fmt.Errorf("snapshotter %s: %w", name, err)
		}
	}
	return o.sweepShims(ctx)
}

// sweepDirectories removes the directories of snapshots that the database in
// root does not name.
func (o *Options) sweepDirectories(ctx context.Context, root string) (err error) {
	dir := filepath.Join(root, "snapshots")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	known, err := snapshotIDs(ctx, filepath.Join(root, "metadata.db"))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if _, ok := known[entry.Name()]; ok {
			continue
		}
		o.remove(dir, entry.Name(), "the directory of an unknown snapshot")
	}
	return nil
}

// snapshotIDs reads which directories a snapshotter's database names. It only
// reads: no fsync.
func snapshotIDs(ctx context.Context, path string) (ids map[string]string, err error) {
	store, err := storage.NewMetaStore(path, func(b *bolt.Options) error {
		b.Timeout = openTimeout
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	err = store.WithTransaction(ctx, false, func(ctx context.Context) error {
		ids, err = storage.IDMap(ctx)
		if errdefs.IsNotFound(err) { // no snapshot was ever made
			err = nil
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return ids, nil
}

// repairAfter collects snapshots that only the snapshotter knows of.
func (e *Engine) repairAfter(ctx context.Context) error {
	p := e.embedded.parts
	for name, bare := range p.snapshotters {
		have, err := count(ctx, bare)
		if err != nil {
			return fmt.Errorf("listing snapshots of %s: %w", name, err)
		}
		list, err := e.client.NamespaceService().List(ctx)
		if err != nil {
			return err
		}
		known := 0
		for _, ns := range list {
			n, err := count(namespaces.WithNamespace(ctx, ns), p.db.Snapshotter(name))
			if err != nil {
				return fmt.Errorf("listing snapshots of %s in namespace %s: %w", name, ns, err)
			}
			known += n
		}
		if have == known {
			continue
		}
		if err := e.collect(ctx, name); err != nil {
			return fmt.Errorf("collecting %d snapshots of %s that a killed daemon left: %w", have-known, name, err)
		}
		e.log.Info("collected snapshots that a killed daemon left", "snapshotter", name, "count", have-known)
	}
	return nil
}

func count(ctx context.Context, s snapshots.Snapshotter) (n int, err error) {
	err = s.Walk(ctx, func(context.Context, snapshots.Info) error { n++; return nil })
	if errdefs.IsNotFound(err) { // no snapshot was ever made
		err = nil
	}
	return n, err
}

// collect makes containerd compare a snapshotter with its own database and
// remove what only the snapshotter has, directories included. containerd does
// that only after a snapshot was removed, so one is made for it.
func (e *Engine) collect(ctx context.Context, snapshotter string) error {
	ctx = e.Context(ctx)
	s := e.client.SnapshotService(snapshotter)
	key := fmt.Sprintf("berth-collect-%d", time.Now().UnixNano())
	_, err := s.Prepare(ctx, key, "")
	if err != nil {
		// It may have met the very directory it is to clear away, which a
		// failed Prepare removes.
		_, err = s.Prepare(ctx, key, "")
	}
	if err != nil {
		return err
	}
	// A collection that just ran may have taken it, to the same end.
	if err := s.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	m := e.client.LeasesService()
	lease, err := m.Create(ctx, leases.WithRandomID(), leases.WithExpiration(time.Minute))
	if err != nil {
		return err
	}
	return m.Delete(ctx, lease, leases.SynchronousDelete)
}

// repairExternal does for an external containerd what can be done from here.
// Its failure is told, not fatal: that containerd may be used otherwise too.
func (e *Engine) repairExternal(ctx context.Context) {
	const name = "overlayfs"
	if c, ok := e.client.SnapshotService(name).(snapshots.Cleaner); ok {
		err := c.Cleanup(e.Context(ctx))
		if err == nil {
			return
		}
		if !errdefs.IsNotImplemented(err) && !errdefs.IsNotFound(err) {
			e.log.Warn("containerd could not clean up its snapshots", "address", e.address, "snapshotter", name, "err", err)
			return
		}
	}
	if err := e.collect(ctx, name); err != nil {
		e.log.Warn("containerd could not collect its snapshots", "address", e.address, "snapshotter", name, "err", err)
	}
}
