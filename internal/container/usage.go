package container

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"berth/internal/record"
)

// usageAge is how old the size of a writable layer may be: finding it walks
// the layer's files.
const usageAge = 10 * time.Second

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

// LayerUsage is the size of the container's writable layer, at most usageAge
// old.
func (s *Service) LayerUsage(ctx context.Context, c *record.Container) (Usage, error) {
	s.usage.mu.Lock()
	have, ok := s.usage.known[c.ID]
	s.usage.mu.Unlock()
	if ok && time.Since(have.At) < usageAge {
		return have, nil
	}
	size, err := s.client.SnapshotService(c.Snapshotter).Usage(s.Engine.Context(ctx), c.ID)
	if err != nil {
		return Usage{}, err
	}
	now := Usage{size, time.Now()}
	s.usage.mu.Lock()
	defer s.usage.mu.Unlock()
	if s.usage.known == nil {
		s.usage.known = map[string]Usage{}
	}
	s.usage.known[c.ID] = now
	return now, nil
}
