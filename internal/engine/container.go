package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// errNothing ends a transaction that has nothing to write.
var errNothing = errors.New("nothing to write")

// MakeContainer writes containerd's record of a container and prepares its
// snapshot c.SnapshotKey on parent, and returns the snapshot's mounts. Embedded
// that is one transaction of each of the two databases, 4 fdatasync; apart it
// would be 8. The snapshot gets the container's labels of marks. After an error
// neither is there, or DropContainer removes what is.
//
// Errors: ErrAlreadyExists, ErrNotFound for the parent, ErrInvalidArgument.
func (e *Engine) MakeContainer(ctx context.Context, c containers.Container, parent string, marks map[string]string) (mounts []mount.Mount, err error) {
	ctx = e.Context(ctx)
	labels := snapshots.WithLabels(marks)
	if e.embedded == nil {
		if mounts, err = e.client.SnapshotService(c.Snapshotter).Prepare(ctx, c.SnapshotKey, parent, labels); err != nil {
			return nil, err
		}
		_, err = e.client.ContainerService().Create(ctx, c)
		return mounts, err
	}
	db, snapshotter, err := e.stores(c.Snapshotter)
	if err != nil {
		return nil, err
	}
	prepared := false
	both := func(tx *bolt.Tx) (err error) {
		ctx := boltutil.WithTransaction(ctx, tx)
		if c, err = metadata.NewContainerStore(db).Create(ctx, c); err != nil {
			return err
		}
		mounts, err = snapshotter.Prepare(ctx, c.SnapshotKey, parent, labels)
		prepared = err == nil
		return err
	}
	err = e.embedded.uncollected(func() error { return db.Update(both) })
	if err != nil && prepared {
		// The snapshotter has what its owner's database took back.
		err = errors.Join(err, e.collect(context.WithoutCancel(ctx), c.Snapshotter))
	}
	if err != nil {
		return nil, fmt.Errorf("containerd's record and snapshot of container %s: %w", c.ID, err)
	}
	return mounts, e.client.EventService().Publish(ctx, "/containers/create", &eventstypes.ContainerCreate{
		ID: c.ID, Image: c.Image, Runtime: &eventstypes.ContainerCreate_Runtime{Name: c.Runtime.Name},
	})
}

// DropContainer removes containerd's record of a container and its snapshot, of
// the same name, in one transaction where containerd is embedded. What is not
// there is no error. The snapshot's directory goes with the next garbage
// collection.
func (e *Engine) DropContainer(ctx context.Context, id, snapshotter string) error {
	ctx = e.Context(ctx)
	if e.embedded == nil {
		return errors.Join(ignoreNotFound(e.client.ContainerService().Delete(ctx, id)),
			ignoreNotFound(e.client.SnapshotService(snapshotter).Remove(ctx, id)))
	}
	db, layers, err := e.stores(snapshotter)
	if err != nil {
		return err
	}
	dropped := false
	err = db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		gone := metadata.NewContainerStore(db).Delete(ctx, id)
		dropped = gone == nil
		removed := layers.Remove(ctx, id)
		if errdefs.IsNotFound(gone) && errdefs.IsNotFound(removed) {
			return errNothing
		}
		return errors.Join(ignoreNotFound(gone), ignoreNotFound(removed))
	})
	switch {
	case errors.Is(err, errNothing):
		return nil
	case err != nil:
		return fmt.Errorf("containerd's record and snapshot of container %s: %w", id, err)
	case !dropped:
		return nil
	}
	return e.client.EventService().Publish(ctx, "/containers/delete", &eventstypes.ContainerDelete{ID: id})
}

// uncollected runs f while no garbage is collected. f is as short as a
// transaction: the collection waits for it, and the next f for the collection.
func (m *embedded) uncollected(f func() error) error {
	m.parts.gate.RLock()
	defer m.parts.gate.RUnlock()
	return f()
}

// stores are the embedded databases of containers and of the snapshotter.
func (e *Engine) stores(snapshotter string) (*metadata.DB, snapshots.Snapshotter, error) {
	db := e.embedded.parts.db
	if layers := db.Snapshotter(snapshotter); layers != nil {
		return db, layers, nil
	}
	return nil, nil, fmt.Errorf("snapshotter %q is not embedded, %s are: %w", snapshotter, strings.Join(snapshotterNames, " and "), errdefs.ErrNotFound)
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
