package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// usageAge is how old figures of the filesystem may be. Asking a
	// snapshotter for an active snapshot walks its files.
	usageAge = 10 * time.Second
	// usagePatience is how long a caller waits for new figures where there are
	// old ones.
	usagePatience = 2 * time.Second
	// usageTimeout bounds one reading of the figures. The next one goes on
	// where it was cut.
	usageTimeout = 10 * time.Minute
	// measureTries bounds how often a layer is walked whose files vanish
	// meanwhile.
	measureTries = 3
)

// usageCache keeps the last figures.
type usageCache struct {
	mu    sync.Mutex // guards the rest; not held across a call
	known map[string]measured
	sum   fsUsage
}

// measured is what is known of one snapshot. A committed one never changes and
// is asked for once.
type measured struct {
	snapshots.Usage
	at time.Time
}

// fsUsage is the use of the filesystem; at is zero where it was never read.
type fsUsage struct {
	images   snapshots.Usage
	writable snapshots.Usage
	at       time.Time
}

// FsInfo returns the use of the image filesystem: image layers and, as
// containerd counts, the containers' writable layers. The figures bear the time
// at which they were read.
func (s *Store) FsInfo(ctx context.Context) ([]*runtime.FilesystemUsage, error) {
	u, err := s.fsUsage(ctx)
	if err != nil {
		return nil, err
	}
	u.images.Add(u.writable)
	return []*runtime.FilesystemUsage{s.filesystem(u.images, u.at)}, nil
}

// ContainerFsInfo returns the use of the containers' writable layers, which
// are on the same filesystem.
func (s *Store) ContainerFsInfo(ctx context.Context) ([]*runtime.FilesystemUsage, error) {
	u, err := s.fsUsage(ctx)
	if err != nil {
		return nil, err
	}
	return []*runtime.FilesystemUsage{s.filesystem(u.writable, u.at)}, nil
}

func (s *Store) filesystem(u snapshots.Usage, at time.Time) *runtime.FilesystemUsage {
	return &runtime.FilesystemUsage{
		Timestamp:  at.UnixNano(),
		FsId:       &runtime.FilesystemIdentifier{Mountpoint: s.opts.FSPath},
		UsedBytes:  &runtime.UInt64Value{Value: uint64(u.Size)},
		InodesUsed: &runtime.UInt64Value{Value: uint64(u.Inodes)},
	}
}

// fsUsage returns figures that are new, or the last ones where new ones take
// long: callers share one reading, which goes on without them.
func (s *Store) fsUsage(ctx context.Context) (fsUsage, error) {
	last := s.usage.last()
	if time.Since(last.at) < usageAge {
		return last, nil
	}
	wait := ctx
	if !last.at.IsZero() {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, usagePatience)
		defer cancel()
	}
	u, err := s.readings.Do(wait, "reading of the image filesystem's use", s.readUsage)
	if err != nil && ctx.Err() == nil && wait.Err() != nil {
		return last, nil
	}
	return u, err
}

func (c *usageCache) last() fsUsage {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sum
}

// readUsage asks for every snapshot of which nothing is known, and again for
// those that change.
func (s *Store) readUsage(ctx context.Context) (fsUsage, error) {
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	service := s.client.SnapshotService(s.opts.Snapshotter)
	kinds := map[string]snapshots.Kind{}
	err := service.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		kinds[info.Name] = info.Kind
		return nil
	})
	if err != nil {
		return fsUsage{}, fmt.Errorf("use of the image filesystem: %w", err)
	}
	for _, name := range s.usage.toAsk(kinds) {
		u, err := Measure(ctx, service, name)
		switch {
		case err == nil:
			s.usage.learn(name, u)
		case errdefs.IsNotFound(err):
			delete(kinds, name) // removed meanwhile
		case ctx.Err() != nil, errdefs.IsUnavailable(err):
			return fsUsage{}, fmt.Errorf("use of the image filesystem: snapshot %s: %w; the next call goes on from there", name, err)
		default: // its last figure stands, or none
			s.log.Debug("snapshot is not measured", "snapshot", name, "err", err)
		}
	}
	return s.usage.add(kinds, time.Now()), nil
}

// toAsk are the snapshots that are to be measured: those never measured first,
// then those whose figures are oldest, so that nothing is missed where readings
// are cut.
func (c *usageCache) toAsk(kinds map[string]snapshots.Kind) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for name, kind := range kinds {
		if _, ok := c.known[name]; !ok || kind != snapshots.KindCommitted {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return c.known[a].at.Compare(c.known[b].at) })
	return names
}

func (c *usageCache) learn(name string, u snapshots.Usage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = map[string]measured{}
	}
	c.known[name] = measured{u, time.Now()}
}

// add adds up what is known of the snapshots there are, and forgets the others.
func (c *usageCache) add(kinds map[string]snapshots.Kind, at time.Time) fsUsage {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.known, func(name string, _ measured) bool { _, ok := kinds[name]; return !ok })
	sum := fsUsage{at: at}
	for name, m := range c.known {
		if kinds[name] == snapshots.KindCommitted {
			sum.images.Add(m.Usage)
		} else {
			sum.writable.Add(m.Usage)
		}
	}
	c.sum = sum
	return sum
}

// Measure returns the use of one snapshot. The snapshotter walks the files of
// one that is active and fails where one vanishes meanwhile, which in a busy
// container is common; then it is asked again, a few times.
func Measure(ctx context.Context, service snapshots.Snapshotter, name string) (snapshots.Usage, error) {
	for try := 1; ; try++ {
		u, err := service.Usage(ctx, name)
		if err == nil || try == measureTries || !vanished(err) {
			return u, err
		}
	}
}

// vanished tells whether err is that of a file. Over gRPC only its text is left.
func vanished(err error) bool {
	return errors.Is(err, unix.ENOENT) || !errdefs.IsNotFound(err) && strings.Contains(err.Error(), unix.ENOENT.Error())
}
