package image

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// usageAge is how old figures of the filesystem may be. Asking a snapshotter
// for an active snapshot walks its files.
const usageAge = 10 * time.Second

// usageCache keeps the last figures. A committed snapshot never changes and is
// asked for once.
type usageCache struct {
	mu        sync.Mutex // guards the rest; held while reading, so that callers share it
	taken     time.Time
	images    snapshots.Usage
	writable  snapshots.Usage
	committed map[string]snapshots.Usage
}

// FsInfo returns the use of the image filesystem: image layers and, as
// containerd counts, the containers' writable layers.
func (s *Store) FsInfo(ctx context.Context) ([]*runtime.FilesystemUsage, error) {
	images, writable, at, err := s.fsUsage(ctx)
	if err != nil {
		return nil, err
	}
	images.Add(writable)
	return []*runtime.FilesystemUsage{s.filesystem(images, at)}, nil
}

// ContainerFsInfo returns the use of the containers' writable layers, which
// are on the same filesystem.
func (s *Store) ContainerFsInfo(ctx context.Context) ([]*runtime.FilesystemUsage, error) {
	_, writable, at, err := s.fsUsage(ctx)
	if err != nil {
		return nil, err
	}
	return []*runtime.FilesystemUsage{s.filesystem(writable, at)}, nil
}

func (s *Store) filesystem(u snapshots.Usage, at time.Time) *runtime.FilesystemUsage {
	return &runtime.FilesystemUsage{
		Timestamp:  at.UnixNano(),
		FsId:       &runtime.FilesystemIdentifier{Mountpoint: s.opts.FSPath},
		UsedBytes:  &runtime.UInt64Value{Value: uint64(u.Size)},
		InodesUsed: &runtime.UInt64Value{Value: uint64(u.Inodes)},
	}
}

func (s *Store) fsUsage(ctx context.Context) (images, writable snapshots.Usage, at time.Time, err error) {
	c := &s.usage
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.taken) < usageAge {
		return c.images, c.writable, c.taken, nil
	}
	if err := s.readUsage(s.ctx(ctx), c); err != nil {
		return images, writable, at, fmt.Errorf("use of the image filesystem: %w", err)
	}
	c.taken = time.Now()
	return c.images, c.writable, c.taken, nil
}

func (s *Store) readUsage(ctx context.Context, c *usageCache) error {
	service := s.client.SnapshotService(s.opts.Snapshotter)
	var all []snapshots.Info
	err := service.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		all = append(all, info)
		return nil
	})
	if err != nil {
		return err
	}
	var images, writable snapshots.Usage
	committed := map[string]snapshots.Usage{}
	for _, info := range all {
		u, known := c.committed[info.Name]
		if !known || info.Kind != snapshots.KindCommitted {
			u, err = service.Usage(ctx, info.Name)
			if errdefs.IsNotFound(err) {
				continue // removed meanwhile
			}
			if err != nil {
				return fmt.Errorf("snapshot %s: %w", info.Name, err)
			}
		}
		if info.Kind == snapshots.KindCommitted {
			committed[info.Name] = u
			images.Add(u)
		} else {
			writable.Add(u)
		}
	}
	c.images, c.writable, c.committed = images, writable, committed
	return nil
}
