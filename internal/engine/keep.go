package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	bolt "go.etcd.io/bbolt"
)

// A task that ends while no daemon runs waits in its shim to tell its exit
// code. containerd, as it starts, takes a shim in which nothing runs for one
// that a crash left behind: it deletes the task and ends the shim, and the exit
// code is lost. It spares sandboxes. So while it starts, each task that was
// created has a sandbox record of its name, which is removed before anybody is
// served. A daemon with no tasks writes nothing.

// keepLabel is on those records.
const keepLabel = "berth.keep-task"

func init() {
	// What loads shims waits for all plugins of this type. This one is no shim
	// manager, and skips itself.
	registry.Register(&plugin.Registration{
		Type:     plugins.ShimPlugin,
		ID:       "berth-keep",
		Requires: []plugin.Type{plugins.MetadataPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			if p, ok := ic.Context.Value(partsKey{}).(*parts); ok {
				db, err := ic.GetSingle(plugins.MetadataPlugin)
				if err != nil {
					return nil, err
				}
				if err := p.keepTasks(ic.Context, db.(*metadata.DB)); err != nil {
					return nil, fmt.Errorf("keeping tasks that have ended: %w", err)
				}
			}
			return nil, plugin.ErrSkipPlugin
		},
	})
}

// a keptTask is a task that has a sandbox record while containerd starts.
type keptTask struct{ namespace, id string }

// keepTasks makes the records, in one transaction.
func (p *parts) keepTasks(ctx context.Context, db *metadata.DB) error {
	state := filepath.Join(p.state, bundleParents[0])
	names, err := grandchildren(state)
	if err != nil {
		return err
	}
	containers, store := metadata.NewContainerStore(db), metadata.NewSandboxStore(db)
	var keep []keptTask
	for _, name := range names {
		t := keptTask{filepath.Dir(name), filepath.Base(name)}
		// The shim writes init.pid once the task is created.
		if _, err := os.Stat(filepath.Join(state, name, "init.pid")); err != nil || strings.HasPrefix(t.id, ".") {
			continue
		}
		nctx := namespaces.WithNamespace(ctx, t.namespace)
		if _, err := containers.Get(nctx, t.id); err != nil {
			continue // nobody will ask for its exit code
		}
		if _, err := store.Get(nctx, t.id); err == nil {
			continue // a sandbox's own, or of a start that was cut
		}
		keep = append(keep, t)
	}
	if len(keep) == 0 {
		return nil
	}
	return db.Update(func(tx *bolt.Tx) error {
		for _, t := range keep {
			_, err := store.Create(boltutil.WithTransaction(namespaces.WithNamespace(ctx, t.namespace), tx),
				sandbox.Sandbox{ID: t.id, Labels: map[string]string{keepLabel: "true"}})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// releaseTasks removes the records, those of a start that was cut included, in
// one transaction, and returns which they were.
func (p *parts) releaseTasks(ctx context.Context) ([]keptTask, error) {
	store := metadata.NewSandboxStore(p.db)
	list, err := p.client.NamespaceService().List(ctx)
	if err != nil {
		return nil, err
	}
	var kept []keptTask
	for _, ns := range list {
		records, err := store.List(namespaces.WithNamespace(ctx, ns), fmt.Sprintf("labels.%q", keepLabel))
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			kept = append(kept, keptTask{ns, r.ID})
		}
	}
	if len(kept) == 0 {
		return nil, nil
	}
	return kept, p.db.Update(func(tx *bolt.Tx) error {
		for _, t := range kept {
			err := store.Delete(boltutil.WithTransaction(namespaces.WithNamespace(ctx, t.namespace), tx), t.id)
			if err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		return nil
	})
}

// dropDeleted removes the bundles of tasks whose shim had deleted them when
// the daemon was killed.
func (e *Engine) dropDeleted(ctx context.Context, kept []keptTask) {
	service := e.client.TaskService()
	for _, t := range kept {
		nctx := namespaces.WithNamespace(ctx, t.namespace)
		_, err := service.Get(nctx, &tasks.GetRequest{ContainerID: t.id})
		if !errdefs.IsNotFound(errgrpc.ToNative(err)) {
			continue
		}
		_, err = service.Delete(nctx, &tasks.DeleteTaskRequest{ContainerID: t.id})
		if err := errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
			e.log.Warn("a task that its shim has deleted stays", "namespace", t.namespace, "id", t.id, "err", err)
		}
	}
}
