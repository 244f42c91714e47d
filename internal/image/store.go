// Package image keeps the node's images: pull, load, list, resolve, remove.
//
// The truth is containerd's image records and content store; the package holds
// no state of its own that a restart would lose. An image has the records that
// containerd's own CRI plugin makes, so that ctr and nerdctl agree with us: one
// by tag, one by repo@digest, one by its ID, which is the config's digest.
//
// Invariants:
//   - A record is written only after the image is wholly downloaded and
//     unpacked: whatever is listed can run (an image that ctr imported is
//     unpacked on first use, see Unpack).
//   - What is being downloaded is held by a lease named after the reference
//     and the attempt (berth-pull-<hash>-<random>) which expires; after a crash
//     Undo or Sweep removes it, and containerd's GC frees the content.
//   - Removing an image removes its records; GC frees what no other image and
//     no container's snapshot needs.
//   - Credentials are in no error, log line, lease or record.
//
// Concurrency: a Store is safe for concurrent use. Callers of one pull share
// it; it goes on when one gives up, and for Options.AbandonAfter when the last
// one does. Pulls of one reference with different credentials follow each
// other. No lock is held across an outside call but the slots of a reference's
// pull and of a layer's unpacking.
package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"berth/internal/steps"
)

// Limits of what a registry or an archive may make us read into memory or
// onto the disk.
const (
	maxManifestSize = 8 << 20
	maxConfigSize   = 8 << 20
	// DefaultMaxArchive bounds an archive given to Load, decompressed.
	DefaultMaxArchive = 128 << 30
)

// Labels of containerd's CRI plugin.
const (
	labelManaged = "io.cri-containerd.image"
	labelPinned  = "io.cri-containerd.pinned"
)

// Steps runs named steps; internal/steps implements it.
type Steps interface {
	Run(ctx context.Context, op, object string, steps ...steps.Step) error
}

// Options configure a Store.
type Options struct {
	// Client is required.
	Client *containerd.Client
	// Steps is required.
	Steps Steps
	// Log is required.
	Log *slog.Logger
	// Namespace is containerd's; default "k8s.io".
	Namespace string
	// Snapshotter unpacks images; default "overlayfs".
	Snapshotter string
	// InProcess tells that Client's containerd is in this process: layers are
	// then written into the snapshotter's directories while they are downloaded.
	InProcess bool
	// FSPath is the directory reported as the image filesystem.
	FSPath string
	// RegistryDirs are searched in order for <host>/hosts.toml.
	RegistryDirs []string
	// ProgressTimeout ends a pull one of whose requests has been waiting for
	// the registry that long; default 5 minutes, negative: never.
	ProgressTimeout time.Duration
	// MaxConcurrentDownloads bounds the downloads of all pulls; default 6.
	MaxConcurrentDownloads int
	// AbandonAfter is how long a pull goes on that nobody waits for, so that a
	// retry finds it; default 30 seconds.
	AbandonAfter time.Duration
	// MaxArchive bounds the archives of Load; default DefaultMaxArchive.
	MaxArchive int64
	// Pinned are references, or prefixes of them ending in *, of images that
	// the kubelet's garbage collection is to leave alone.
	Pinned []string
}

// A Store is the node's images.
type Store struct {
	opts     Options
	client   *containerd.Client
	steps    Steps
	log      *slog.Logger
	platform platforms.MatchComparer
	pins     []pinPattern
	limiter  *semaphore.Weighted

	// base ends the pulls at Close.
	base   context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// refs gives one pull at a time to a reference, chains one unpacking to a
	// snapshot.
	refs   steps.Slots
	chains chainLocks

	mu     sync.Mutex // guards pulls, leases, closed; never held across a call
	pulls  map[string]*pull
	leases map[string]bool // in use by this process
	closed bool

	infoMu sync.Mutex // guards infos
	infos  map[digest.Digest]*info

	usage    usageCache
	readings *steps.Flights[fsUsage]
}

// New returns a Store. Close ends it.
func New(opts Options) (*Store, error) {
	if opts.Client == nil || opts.Steps == nil || opts.Log == nil {
		return nil, errors.New("image: Options need Client, Steps and Log")
	}
	opts.setDefaults()
	pins, err := parsePins(opts.Pinned)
	if err != nil {
		return nil, err
	}
	base, cancel := context.WithCancel(namespaces.WithNamespace(context.Background(), opts.Namespace))
	return &Store{
		opts: opts, client: opts.Client, steps: opts.Steps, log: opts.Log,
		platform: platforms.Default(),
		pins:     pins,
		limiter:  semaphore.NewWeighted(int64(opts.MaxConcurrentDownloads)),
		base:     base, cancel: cancel,
		pulls:  map[string]*pull{},
		leases: map[string]bool{},
		infos:  map[digest.Digest]*info{},

		readings: steps.NewFlights[fsUsage](base, opts.Log),
	}, nil
}

func (o *Options) setDefaults() {
	if o.Namespace == "" {
		o.Namespace = "k8s.io"
	}
	if o.Snapshotter == "" {
		o.Snapshotter = "overlayfs"
	}
	if o.ProgressTimeout == 0 {
		o.ProgressTimeout = 5 * time.Minute
	}
	if o.MaxConcurrentDownloads <= 0 {
		o.MaxConcurrentDownloads = 6
	}
	if o.AbandonAfter <= 0 {
		o.AbandonAfter = 30 * time.Second
	}
	if o.MaxArchive <= 0 {
		o.MaxArchive = DefaultMaxArchive
	}
}

// Close cancels the pulls and readings under way and waits for them. It may be
// called twice.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	s.readings.Wait()
	return nil
}

// ctx puts containerd's namespace into a caller's context.
func (s *Store) ctx(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, s.opts.Namespace)
}

// chainLocks let one unpacker at a time make a snapshot or fetch a blob; it is
// what containerd calls a duplication suppressor.
type chainLocks struct {
	slots steps.Slots
	mu    sync.Mutex // guards held
	held  map[string]func()
}

// Lock waits for key.
func (c *chainLocks) Lock(ctx context.Context, key string) error {
	release, err := c.slots.Acquire(ctx, key)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		c.held = map[string]func(){}
	}
	c.held[key] = release
	return nil
}

// Unlock gives key back; only its holder calls it.
func (c *chainLocks) Unlock(key string) {
	c.mu.Lock()
	release := c.held[key]
	delete(c.held, key)
	c.mu.Unlock()
	if release == nil {
		panic(fmt.Sprintf("image: unlock of %s, which is not locked", key))
	}
	release()
}
