package engine

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/moby/sys/userns"
)

// containerd's garbage collection removes from a snapshotter what containerd's
// own database does not name. A container is made in one transaction of that
// database (MakeContainer), so for a moment the snapshotter has what the
// database does not show yet. A gate keeps the two apart, which is why the
// collections are scheduled here and not by containerd's own scheduler. The
// directories of removed snapshots are deleted outside of the gate, for that
// may take long.

const (
	// collectAfter is how long after a removal a collection runs, so that one
	// serves several; a caller that waits for it does not wait so long.
	collectAfter = 100 * time.Millisecond
	// collectShare bounds the collections to this part of the time.
	collectShare = 50
	// collectFirst is when what a killed daemon removed is collected.
	collectFirst = 5 * time.Second
)

// A collector schedules containerd's garbage collections. One goroutine runs
// them, which Close ends.
type collector struct {
	db  *metadata.DB
	log *slog.Logger
	// gate is held for reading while something is made that the database does
	// not show yet, for writing while what it does not show is removed.
	gate   *sync.RWMutex
	layers map[string]snapshots.Snapshotter
	// unclean are the snapshotters with directories to delete; only run's.
	unclean map[string]bool

	dirty    chan struct{} // has a token when something was removed
	requests chan chan<- collected
	cancel   context.CancelFunc
	ended    chan struct{}
}

// collected is the outcome of one collection.
type collected struct {
	stats gc.Stats
	err   error
}

func init() {
	registry.Register(&plugin.Registration{
		Type:     plugins.GCPlugin,
		ID:       "scheduler", // the name under which containerd's would be
		Requires: []plugin.Type{plugins.MetadataPlugin, plugins.SnapshotPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			p, ok := ic.Context.Value(partsKey{}).(*parts)
			if !ok {
				return nil, plugin.ErrSkipPlugin
			}
			db, err := ic.GetSingle(plugins.MetadataPlugin)
			if err != nil {
				return nil, err
			}
			layers, err := bareSnapshotters(ic)
			if err != nil {
				return nil, err
			}
			return startCollector(ic.Context, db.(*metadata.DB), layers, p), nil
		},
	})
	registry.Register(&plugin.Registration{
		Type:   plugins.SnapshotPlugin,
		ID:     "overlayfs",
		InitFn: openOverlay,
	})
}

// openOverlay is containerd's overlay snapshotter with its default options,
// but that collections do not wait for the deletion of directories.
func openOverlay(ic *plugin.InitContext) (any, error) {
	root := ic.Properties[plugins.PropertyRootDir]
	ic.Meta.Platforms = append(ic.Meta.Platforms, platforms.DefaultSpec())
	ic.Meta.Exports[plugins.SnapshotterRootDir] = root
	ic.Meta.Capabilities = append(ic.Meta.Capabilities, "only-remap-ids") // by mounts, never by chown
	options := []overlay.Opt{overlay.AsynchronousRemove}
	if ok, err := overlayutils.SupportsIDMappedMounts(); err == nil && ok {
		options = append(options, overlay.WithRemapIDs)
		ic.Meta.Capabilities = append(ic.Meta.Capabilities, "remap-ids")
	}
	if !userns.RunningInUserNS() { // it makes device files for whiteouts
		ic.Meta.Capabilities = append(ic.Meta.Capabilities, snapshots.RebaseCap)
	}
	s, err := overlay.NewSnapshotter(root, options...)
	if err != nil {
		return nil, err
	}
	return &lateCleaner{s}, nil
}

// A lateCleaner hides snapshots.Cleaner from containerd's collection.
type lateCleaner struct{ snapshots.Snapshotter }

func (l *lateCleaner) cleanLate(ctx context.Context) error {
	if c, ok := l.Snapshotter.(snapshots.Cleaner); ok {
		return c.Cleanup(ctx)
	}
	return nil
}

func startCollector(ctx context.Context, db *metadata.DB, layers map[string]snapshots.Snapshotter, p *parts) *collector {
	run, cancel := context.WithCancel(ctx)
	c := &collector{
		db: db, log: p.log, gate: &p.gate, layers: layers, unclean: map[string]bool{},
		dirty: make(chan struct{}, 1), requests: make(chan chan<- collected),
		cancel: cancel, ended: make(chan struct{}),
	}
	db.RegisterMutationCallback(func(dirty bool) {
		if dirty {
			select {
			case c.dirty <- struct{}{}:
			default:
			}
		}
	})
	go c.run(run)
	return c
}

// Close ends the collections and waits for the one under way.
func (c *collector) Close() error {
	c.cancel()
	<-c.ended
	return nil
}

// ScheduleAndWait runs a collection now and returns when all that was removed
// before the call is gone. containerd's services call it for synchronous
// removals.
func (c *collector) ScheduleAndWait(ctx context.Context) (gc.Stats, error) {
	done := make(chan collected, 1)
	select {
	case c.requests <- done:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.ended:
		return nil, errors.Join(errdefs.ErrUnavailable, errors.New("containerd is being stopped"))
	}
	select {
	case r := <-done:
		return r.stats, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *collector) run(ctx context.Context) {
	defer close(c.ended)
	timer := time.NewTimer(collectFirst)
	defer timer.Stop()
	soon := false      // the timer is for a removal
	var rest time.Time // no collection before, unless one is asked for
	for {
		var waiters []chan<- collected
		select {
		case <-ctx.Done():
			return
		case <-c.dirty:
			if !soon {
				soon = true
				timer.Reset(max(collectAfter, time.Until(rest)))
			}
			continue
		case w := <-c.requests:
			waiters = append(waiters, w)
		case <-timer.C:
		}
		soon = false
		begin := time.Now()
		stats, err := c.collect(ctx)
		for _, w := range waiters {
			w <- collected{stats, err}
		}
		if err != nil && ctx.Err() == nil {
			c.log.Error("containerd's garbage is not collected; it is tried again", "err", err)
			soon = true
			timer.Reset(collectFirst)
		}
		rest = time.Now().Add(collectShare * time.Since(begin))
	}
}

// collect removes what nothing refers to, then deletes the directories.
func (c *collector) collect(ctx context.Context) (gc.Stats, error) {
	select {
	case <-c.dirty: // this collection serves it
	default:
	}
	stats, err := c.sweep(ctx)
	if s, ok := stats.(metadata.GCStats); ok {
		for name := range s.SnapshotD {
			c.unclean[name] = true
		}
	}
	errs := []error{err}
	for name := range c.unclean {
		if late, ok := c.layers[name].(*lateCleaner); ok {
			if err := late.cleanLate(ctx); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		delete(c.unclean, name)
	}
	return stats, errors.Join(errs...)
}

func (c *collector) sweep(ctx context.Context) (gc.Stats, error) {
	c.gate.Lock()
	defer c.gate.Unlock()
	return c.db.GarbageCollect(ctx)
}
