// Package engine is the containerd under berth: images' content, snapshots,
// metadata, leases, garbage collection, tasks and events.
//
// It is either embedded (StartEmbedded: containerd 2.4 in this process, made
// of the plugins in plugins.go, reached without a socket) or external (Connect:
// a containerd that runs already, over gRPC). Nothing above this package knows
// which; one suite of tests passes on both.
//
// Invariants:
//   - The embedded engine serves its gRPC socket too, so that ctr, nerdctl and
//     cAdvisor work, and a ttrpc socket beside it (Socket + ".ttrpc") to which
//     shims publish events.
//   - A shim is never touched: not by Close, not by the death of the process.
//     The next start adopts the shims that live. See adopt.go for what it does
//     with those that a kill left half made.
//   - When StartEmbedded returns, nothing that a killed predecessor left can
//     make a later call fail. See repair.go.
//   - Every path is below Options.Root or Options.State. The one exception is
//     the directory of the shims' sockets, which is /run/berth-shims-HASH where
//     State is too long for a socket's name.
//
// What a mutation costs: metadata is in bolt, and each writing transaction
// there is two fdatasync. There are two databases: containerd's meta.db, and
// the snapshotter's metadata.db. So a lease is 2, a label 2, a blob of content 2
// and an fsync of the file; preparing a snapshot is three transactions, 6;
// removing one is 2, and 4 more when garbage is collected. A container's record
// and snapshot are made together, by 4, and removed by 2 (MakeContainer,
// DropContainer). containerd has one switch, no_sync of its bolt plugin. It is
// off here: a killed process loses nothing by it, but after a power cut the
// whole database, images included, may be unreadable.
//
// Concurrency: an Engine is safe for concurrent use. Several may run in one
// process with directories of their own; starting is serialised, for
// containerd's plugin registry is global. Three things they share: the PATH
// that shims are looked up in, containerd's directory for temporary mounts and
// its default logger belong to the engine that was started last.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
)

// Namespace is the containerd namespace that everything of berth is in, the
// one that the kubelet's tools look at.
const Namespace = "k8s.io"

// dialTimeout is how long Connect waits for an external containerd.
const dialTimeout = 10 * time.Second

// An Engine is a containerd that is ready to use.
type Engine struct {
	client  *containerd.Client
	address string
	log     *slog.Logger
	// embedded is nil when the engine is external.
	embedded *embedded

	closeOnce sync.Once
	closeErr  error
}

// Connect uses the containerd that serves address, a path or unix:// URL. It
// waits a few seconds for it to answer.
func Connect(ctx context.Context, address string, log *slog.Logger) (*Engine, error) {
	address = strings.TrimPrefix(address, "unix://")
	client, err := containerd.New(address, containerd.WithDefaultNamespace(Namespace), containerd.WithTimeout(dialTimeout),
		// containerd's own dialer goes on trying after the client was closed.
		containerd.WithExtraDialOpts([]grpc.DialOption{grpc.WithContextDialer(dialUnix)}))
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", address, err)
	}
	e := &Engine{client: client, address: address, log: log}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	serving, err := client.IsServing(ctx)
	if err == nil && !serving {
		err = errdefs.ErrUnavailable
	}
	if err == nil {
		_, err = e.Version(ctx)
	}
	if err != nil {
		_ = client.Close() // nothing was asked of it that could be lost
		return nil, fmt.Errorf("containerd at %s does not answer; is it running, and is this its address? %w", address, err)
	}
	e.repairExternal(ctx)
	return e, nil
}

func dialUnix(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", strings.TrimPrefix(address, "unix://"))
}

// Client is containerd's client. Calls to an embedded engine do not leave the
// process, so nothing adds the default namespace to them: give each a context
// of Context.
func (e *Engine) Client() *containerd.Client { return e.client }

// Context puts the engine's namespace into ctx.
func (e *Engine) Context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, Namespace)
}

// Embedded tells whether containerd runs in this process.
func (e *Engine) Embedded() bool { return e.embedded != nil }

// Address is the path of containerd's gRPC socket.
func (e *Engine) Address() string { return e.address }

// Version is containerd's version, such as "2.4.2".
func (e *Engine) Version(ctx context.Context) (string, error) {
	if e.embedded != nil {
		return cleanVersion(version.Version), nil
	}
	v, err := e.client.Version(ctx)
	if err != nil {
		return "", fmt.Errorf("version of containerd at %s: %w", e.address, err)
	}
	return cleanVersion(v.Version), nil
}

// MapsIDs tells whether the snapshotter can show a container's files as those of
// a user namespace, which it is told by labels of the snapshot.
func (e *Engine) MapsIDs(ctx context.Context, snapshotter string) (bool, error) {
	can, err := e.client.GetSnapshotterCapabilities(e.Context(ctx), snapshotter)
	if err != nil {
		return false, fmt.Errorf("capabilities of the snapshotter %s: %w", snapshotter, err)
	}
	return slices.Contains(can, "remap-ids"), nil
}

// cleanVersion cuts what a build without stamps leaves.
func cleanVersion(v string) string { return strings.TrimPrefix(strings.TrimSuffix(v, "+unknown"), "v") }

// Close ends the connection and stops an embedded containerd. It never touches
// a shim. Calls under way fail. It may be called twice.
func (e *Engine) Close() error {
	e.closeOnce.Do(func() {
		if err := e.client.Close(); err != nil {
			e.closeErr = fmt.Errorf("closing the client of containerd at %s: %w", e.address, err)
		}
		if e.embedded != nil {
			e.embedded.stop()
			// A server that is stopped before it began to serve leaves its socket.
			for _, socket := range []string{e.address, e.address + ".ttrpc"} {
				if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
					e.closeErr = errors.Join(e.closeErr, err)
				}
			}
		}
	})
	return e.closeErr
}
