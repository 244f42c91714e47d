package container

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"berth/internal/image"
	"berth/internal/record"
)

const (
	// usageAge is how old the size of a writable layer may be: finding it walks
	// the layer's files.
	usageAge = 10 * time.Second
	// firstPatience and patience are how long a caller waits for a walk, the
	// first one and one that brings a new figure in place of an old one.
	firstPatience = 5 * time.Second
	patience      = time.Second
)

// layerUsage keeps the sizes of writable layers.
type layerUsage struct {
	mu    sync.Mutex // guards known; not held while a layer is walked
	known map[string]Usage
}

// Usage is the size of a container's writable layer.
type Usage struct {
	snapshots.Usage
	At time.Time
}

func (u *layerUsage) forget(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.known, id)
}

func (u *layerUsage) get(id string) (Usage, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	have, ok := u.known[id]
	return have, ok
}

func (u *layerUsage) put(id string, size snapshots.Usage) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.known == nil {
		u.known = map[string]Usage{}
	}
	u.known[id] = Usage{size, time.Now()}
}

// LayerUsage is the size of the container's writable layer: at most usageAge
// old, or the last one known where the walk takes long or fails. The walk goes
// on without its callers and is shared by them.
//
// Errors: ErrNotFound for a container that is gone.
func (s *Service) LayerUsage(ctx context.Context, c *record.Container) (Usage, error) {
	have, ok := s.usage.get(c.ID)
	if ok && time.Since(have.At) < usageAge {
		return have, nil
	}
	wait := firstPatience
	if ok {
		wait = patience
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	_, err := s.flights.Do(ctx, "walk of the layer of container "+c.ID, func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(s.Engine.Context(ctx), opTimeout)
		defer cancel()
		size, err := image.Measure(ctx, s.client.SnapshotService(c.Snapshotter), c.ID)
		if err == nil {
			s.usage.put(c.ID, size)
		}
		if _, gone := s.Store.Containers.Get(c.ID); notFound(gone) {
			s.usage.forget(c.ID)
		}
		return "", err
	})
	now, known := s.usage.get(c.ID)
	switch {
	case errdefs.IsNotFound(err):
		return Usage{}, err
	case known:
		return now, nil
	case err != nil:
		return Usage{}, fmt.Errorf("size of the writable layer of container %s: %w", c.ID, err)
	}
	return Usage{}, fmt.Errorf("container %s: removed meanwhile: %w", c.ID, errdefs.ErrNotFound)
}

// LastLayerUsage is LayerUsage for callers that would rather have an older
// figure, up to age, than wait for a walk. Where it is older than usageAge the
// walk that brings a new one begins, one after another.
func (s *Service) LastLayerUsage(ctx context.Context, c *record.Container, age time.Duration) (Usage, error) {
	have, ok := s.usage.get(c.ID)
	if !ok || time.Since(have.At) >= age {
		return s.LayerUsage(ctx, c)
	}
	if time.Since(have.At) >= usageAge {
		s.walks.add(c)
		begun, cancel := context.WithCancel(ctx)
		cancel() // for the run only has to begin; it goes on without its callers
		_, err := s.flights.Do(begun, "walks of layers", s.walkAll)
		if err != nil && !errors.Is(err, context.Canceled) {
			return Usage{}, err
		}
	}
	return have, nil
}

// A walkList is the containers whose layers are to be walked.
type walkList struct {
	mu   sync.Mutex // guards list
	list map[string]*record.Container
}

func (w *walkList) add(c *record.Container) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.list == nil {
		w.list = map[string]*record.Container{}
	}
	w.list[c.ID] = c
}

// next takes one out of the list; nil: it is empty.
func (w *walkList) next() *record.Container {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, c := range w.list {
		delete(w.list, id)
		return c
	}
	return nil
}

// walkAll waits for each walk as long as any caller does, so that one that
// hangs delays the others by no more than that.
func (s *Service) walkAll(ctx context.Context) (string, error) {
	for c := s.walks.next(); c != nil && ctx.Err() == nil; c = s.walks.next() {
		if _, err := s.LayerUsage(ctx, c); err != nil && !errdefs.IsNotFound(err) {
			s.Log.Debug("the size of a writable layer stays as it was", "container", c.ID, "err", err)
		}
	}
	return "", nil
}
