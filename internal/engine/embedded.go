package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"google.golang.org/grpc"
)

// Options configure an embedded engine. All but ShimDirs and Shims are required.
type Options struct {
	// Root is containerd's persistent directory, State its volatile one,
	// Socket the path of its gRPC socket; absolute.
	Root, State, Socket string
	// ShimDirs are where shim binaries are looked up before PATH.
	ShimDirs []string
	// Shims are the paths of shim binaries that are named otherwise than
	// containerd-shim-*. What a kill leaves of them is found by these.
	Shims []string
	// Log receives containerd's log lines too: its warnings and errors as
	// they are, its info as debug.
	Log *slog.Logger
}

const (
	// maxSocketDir is what is left of a socket's name (107 bytes) for the
	// shims' directory: they add a slash and 64 hex digits.
	maxSocketDir = 42
	// maxSocket is what is left for Options.Socket beside ".ttrpc".
	maxSocket = 104 - len(".ttrpc")
	// shortSocketDir and a hash of State is where the shims' sockets are when
	// State is too long.
	shortSocketDir = "/run/berth-shims-"
)

// openTimeout is how long a database may be locked by another process. There is
// one only when two daemons share a root; without an end, the second would wait
// for ever.
var openTimeout = 5 * time.Second

// startMu serialises starts: containerd's plugins are registered once a
// process, and decode their configuration into one variable each.
var startMu sync.Mutex

// embedded is a containerd server in this process.
type embedded struct {
	server    *server.Server
	cancel    context.CancelFunc
	parts     *parts
	socketDir string
}

// parts are what our own plugin hands out of the server while it starts.
type parts struct {
	// state is Options.State.
	state string
	// set holds the plugins that are up, in their order.
	set    *plugin.Set
	client *containerd.Client
	db     *metadata.DB
	// snapshotters are the bare ones, without containerd's metadata before
	// them.
	snapshotters map[string]snapshots.Snapshotter
	log          *slog.Logger
	// gate keeps garbage collection from what is being made; see collect.go.
	gate sync.RWMutex
}

// partsKey is the key in a context of the *parts to fill.
type partsKey struct{}

const clientPluginURI = "io.containerd.internal.v1.berth"

func init() {
	// The metadata plugin, the first to hold a lock, waits for all content
	// plugins. This one is no content store, and skips itself.
	registry.Register(&plugin.Registration{
		Type: plugins.ContentPlugin,
		ID:   "berth-set",
		InitFn: func(ic *plugin.InitContext) (any, error) {
			if p, ok := ic.Context.Value(partsKey{}).(*parts); ok {
				p.set = ic.Plugins()
			}
			return nil, plugin.ErrSkipPlugin
		},
	})
	registry.Register(&plugin.Registration{
		Type: plugins.InternalPlugin,
		ID:   "berth",
		Requires: []plugin.Type{
			plugins.EventPlugin, plugins.LeasePlugin, plugins.SandboxStorePlugin,
			plugins.SandboxControllerPlugin, plugins.TransferPlugin, plugins.StreamingPlugin,
			plugins.MountManagerPlugin, plugins.ServicePlugin, plugins.MetadataPlugin, plugins.SnapshotPlugin,
		},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			p, ok := ic.Context.Value(partsKey{}).(*parts)
			if !ok {
				return nil, plugin.ErrSkipPlugin
			}
			return p, p.fill(ic)
		},
	})
}

// fill takes the client and the stores out of the server that is starting.
func (p *parts) fill(ic *plugin.InitContext) error {
	db, err := ic.GetSingle(plugins.MetadataPlugin)
	if err != nil {
		return err
	}
	p.db = db.(*metadata.DB)
	if p.snapshotters, err = bareSnapshotters(ic); err != nil {
		return err
	}
	// The address is for what has no in-memory form: sandbox controllers,
	// health, version. It is not dialled before it is used.
	p.client, err = containerd.New(ic.Properties[plugins.PropertyGRPCAddress],
		containerd.WithInMemoryServices(ic), containerd.WithDefaultNamespace(Namespace),
		containerd.WithExtraDialOpts([]grpc.DialOption{grpc.WithContextDialer(dialUnix)}))
	return err
}

// bareSnapshotters are those without containerd's metadata before them.
func bareSnapshotters(ic *plugin.InitContext) (map[string]snapshots.Snapshotter, error) {
	found, err := ic.GetByType(plugins.SnapshotPlugin)
	if err != nil {
		return nil, err
	}
	bare := map[string]snapshots.Snapshotter{}
	for name, s := range found {
		bare[name] = s.(snapshots.Snapshotter)
	}
	return bare, nil
}

// StartEmbedded starts a containerd in this process. What a killed predecessor
// left behind is put right before it returns; shims that live are adopted. The
// engine is ready to use then. ctx bounds the start only.
func StartEmbedded(ctx context.Context, o Options) (*Engine, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	startMu.Lock()
	defer startMu.Unlock()

	conf, err := o.config()
	if err != nil {
		return nil, err
	}
	if err := o.prepareProcess(conf); err != nil {
		return nil, fmt.Errorf("embedded containerd: %w", err)
	}
	if err := o.repairBefore(ctx); err != nil {
		return nil, fmt.Errorf("embedded containerd: putting right what a killed predecessor left: %w", err)
	}

	p := &parts{state: o.State, log: o.Log}
	run, cancel := context.WithCancel(context.WithValue(o.logContext(context.WithoutCancel(ctx)), partsKey{}, p))
	srv, err := server.New(run, conf)
	e := &Engine{client: p.client, address: o.Socket, log: o.Log,
		embedded: &embedded{server: srv, cancel: cancel, parts: p, socketDir: o.socketDir()}}
	if err == nil {
		o.spreadSnapshots()
		if err = e.serve(ctx, run); err == nil {
			return e, nil
		}
	}
	if p.client != nil {
		_ = p.client.Close() // not handed out yet
	}
	e.embedded.stop()
	return nil, fmt.Errorf("embedded containerd in %s: %w", o.Root, err)
}

// serve opens the sockets of a server that has loaded, once what a kill left is
// put right.
func (e *Engine) serve(ctx, run context.Context) error {
	kept, err := e.embedded.parts.releaseTasks(ctx)
	if err != nil {
		return fmt.Errorf("releasing tasks: %w", err)
	}
	if err := e.repairAfter(ctx); err != nil {
		return err
	}
	if err := e.embedded.server.Start(run); err != nil {
		return err
	}
	e.embedded.server.Wait()
	e.dropDeleted(ctx, kept)
	return nil
}

func (o *Options) validate() error {
	for _, f := range []struct{ name, value string }{{"Root", o.Root}, {"State", o.State}, {"Socket", o.Socket}} {
		if !filepath.IsAbs(f.value) {
			return fmt.Errorf("engine: %s %q is not an absolute path: %w", f.name, f.value, errdefs.ErrInvalidArgument)
		}
	}
	if len(o.Socket) > maxSocket {
		return fmt.Errorf("engine: Socket %q has %d bytes, at most %d fit into a socket's name; choose a shorter state directory: %w",
			o.Socket, len(o.Socket), maxSocket, errdefs.ErrInvalidArgument)
	}
	if o.Log == nil {
		return fmt.Errorf("engine: Options need Log: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// socketDir is where the shims' sockets are.
func (o *Options) socketDir() string {
	if dir := filepath.Join(o.State, "s"); len(dir) <= maxSocketDir {
		return dir
	}
	sum := sha256.Sum256([]byte(filepath.Clean(o.State)))
	return shortSocketDir + hex.EncodeToString(sum[:8])
}

// config is containerd's configuration, as its file would hold it.
func (o *Options) config() (*srvconfig.Config, error) {
	return &srvconfig.Config{
		Version:         version.ConfigVersion,
		Root:            o.Root,
		State:           o.State,
		DisabledPlugins: disabled,
		RequiredPlugins: slices.Clone(required),
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":  map[string]any{"address": o.Socket},
			"io.containerd.server.v1.ttrpc": map[string]any{"address": o.Socket + ".ttrpc"},
			"io.containerd.shim.v1.manager": map[string]any{"socket_dir": o.socketDir()},
		},
		Timeouts: map[string]string{
			"io.containerd.timeout.bolt.open": openTimeout.String(),
		},
	}, nil
}

// prepareProcess makes the directories and sets what containerd takes from the
// process: PATH, and where temporary mounts are. Those that a killed process
// left are unmounted.
func (o *Options) prepareProcess(conf *srvconfig.Config) error {
	if err := server.CreateTopLevelDirectories(conf); err != nil {
		return err
	}
	if err := os.MkdirAll(o.socketDir(), 0o700); err != nil {
		return err
	}
	if err := prependPath(o.ShimDirs); err != nil {
		return err
	}
	if err := mount.SetTempMountLocation(filepath.Join(o.Root, "tmpmounts")); err != nil {
		return err
	}
	warnings, err := mount.CleanupTempMounts(0)
	for _, w := range warnings {
		o.Log.Warn("a temporary mount stays", "err", w)
	}
	return err
}

// prependPath puts dirs before the rest of PATH, once.
func prependPath(dirs []string) error {
	have := filepath.SplitList(os.Getenv("PATH"))
	var list []string
	for _, d := range append(slices.Clone(dirs), have...) {
		if d != "" && !slices.Contains(list, d) {
			list = append(list, d)
		}
	}
	return os.Setenv("PATH", strings.Join(list, string(filepath.ListSeparator)))
}

// stop ends the server. Connections to shims stay open until the process ends:
// containerd takes a closed one for a dead shim, and would clean up after it.
func (m *embedded) stop() {
	m.cancel()
	if m.server != nil {
		m.server.Stop()
	} else if m.parts.set != nil {
		// A start that failed half way: release the databases.
		for _, p := range slices.Backward(m.parts.set.GetAll()) {
			if instance, err := p.Instance(); err == nil {
				if c, ok := instance.(io.Closer); ok {
					_ = c.Close() // the start's own error is what counts
				}
			}
		}
	}
	// A directory of its own goes when the last shim's socket has gone.
	if strings.HasPrefix(m.socketDir, shortSocketDir) {
		_ = os.Remove(m.socketDir)
	}
}
