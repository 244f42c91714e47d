// Package daemon builds all parts of berth, starts them in their order and
// stops them in the reverse; it is the only package that knows them all.
//
// Invariant: when Run returns, everything that it started in this process has
// ended and every container runs on. Concurrency: Run is called once a process.
package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/config"
	"berth/internal/container"
	"berth/internal/cri"
	"berth/internal/engine"
	"berth/internal/events"
	"berth/internal/host"
	"berth/internal/image"
	"berth/internal/network"
	"berth/internal/paths"
	"berth/internal/record"
	"berth/internal/sandbox"
	"berth/internal/spec"
	"berth/internal/stats"
	"berth/internal/steps"
	"berth/internal/stream"
	"berth/internal/supervisor"
	"berth/internal/telemetry"
)

// Options are what a daemon is started with. All but Alive are required.
type Options struct {
	// Config is valid.
	Config *config.Config
	// Executable is the running program; what is installed with it is found
	// from its place.
	Executable string
	Log        *slog.Logger
	// Ready is called when the sockets answer.
	Ready func() error
	// Alive is called twice in each AliveEvery while the sockets answer; zero: it
	// is not.
	Alive      func() error
	AliveEvery time.Duration
}

// parts are the daemon's, in the order in which they are started.
type parts struct {
	Options
	paths      paths.Paths
	metrics    *telemetry.Metrics
	store      *record.Store
	steps      *steps.Runner
	cgroups    *host.Cgroups
	stats      *stats.Reader
	kernel     spec.Kernel
	engine     *engine.Engine
	images     *image.Store
	network    *network.Network
	hold       *supervisor.Hold
	fleet      *supervisor.Fleet
	left       []string // supervisors of the last run
	reaper     *supervisor.Reaper
	events     *events.Bus[*runtime.ContainerEventResponse]
	containers *container.Service
	sandboxes  *sandbox.Service
	streams    *stream.Server

	// mapsIDs: the snapshotter can show an image's files as a user namespace's.
	mapsIDs bool

	// closers stop what was started, last first.
	closers []func() error
}

// Run starts the daemon and serves until ctx ends.
func Run(ctx context.Context, o Options) (err error) {
	p := &parts{Options: o, paths: paths.Paths{Root: o.Config.Root, State: o.Config.State}}
	defer func() { err = errors.Join(err, p.close()) }()
	for _, start := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"directories", p.openDirectories},
		{"socket", p.claimAddress},
		{"records", p.openRecords},
		{"machine", p.readMachine},
		// Before containerd, which drops the tasks of a supervisor that does not
		// answer.
		{"supervisor", p.openSupervisor},
		{"containerd", p.startEngine},
		{"images", p.openImages},
		{"network", p.openNetwork},
		{"pods", p.openLifecycles},
		{"streams", p.startStreams},
		{"reconcile", p.reconcile},
	} {
		if err := start.do(ctx); err != nil {
			return fmt.Errorf("start of %s: %w", start.name, err)
		}
	}
	return p.serve(ctx)
}

// later has close called when the daemon stops.
func (p *parts) later(close func() error) { p.closers = append(p.closers, close) }

func (p *parts) close() error {
	var errs []error
	for _, close := range slices.Backward(p.closers) {
		errs = append(errs, close())
	}
	return errors.Join(errs...)
}

// openDirectories makes and locks the directories. Below those of pods and
// containers are files that a container made: volumes, with setuid programs
// perhaps, and its image while it is mounted. Only root may reach them;
// containers get theirs by bind mounts.
func (p *parts) openDirectories(context.Context) error {
	for _, dir := range []string{p.paths.Root, p.paths.State} {
		if err := ownDirectory(dir, 0o711); err != nil {
			return err
		}
		file, err := lock("directory "+dir, filepath.Join(dir, filepath.Base(p.paths.Lock())), p.Config.Address)
		if err != nil {
			return err
		}
		p.later(file.Close)
	}
	for _, dir := range []string{p.paths.Sandboxes(), p.paths.Containers(), p.paths.SandboxStates(), p.paths.ContainerStates()} {
		if err := ownDirectory(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// ownDirectory makes a directory, or takes from one that is there what its mode
// has beyond the one given.
func ownDirectory(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if have := info.Mode().Perm(); have&^mode != 0 {
		return os.Chmod(dir, have&mode)
	}
	return nil
}

func (p *parts) openRecords(ctx context.Context) (err error) {
	if p.store, err = record.Open(ctx, p.paths.Records(), p.Log); err != nil {
		return err
	}
	p.later(p.store.Close)
	failpoints, err := steps.FailpointsFromEnv()
	if err != nil {
		return err
	}
	p.metrics = telemetry.NewMetrics()
	p.steps = steps.New(steps.Options{Journal: p.store, Log: p.Log, Observe: p.metrics.ObserveStep, Failpoints: failpoints})
	return nil
}

func (p *parts) readMachine(context.Context) (err error) {
	if p.cgroups, err = host.NewCgroups(p.Config.Cgroup.Driver); err != nil {
		return err
	}
	p.later(p.cgroups.Close)
	p.stats = stats.New(p.cgroups, p.hasRecord)
	p.later(p.stats.Close)
	if p.kernel, err = spec.ReadKernel(); err != nil {
		return err
	}
	if p.kernel.SwapAccounting, err = p.cgroups.SwapLimits(); err != nil {
		p.Log.Warn("containers with a memory limit get none for swap if the kernel can limit it; see to the cgroups and restart berth", "err", err)
	}
	return nil
}

func (p *parts) startEngine(ctx context.Context) (err error) {
	if address := p.Config.Containerd.Address; address != "" {
		p.engine, err = engine.Connect(ctx, address, p.Log)
	} else {
		p.engine, err = engine.StartEmbedded(ctx, engine.Options{
			Root: p.paths.Containerd(), State: p.paths.ContainerdState(), Socket: p.paths.ContainerdSocket(),
			ShimDirs: []string{p.libexec(), filepath.Dir(p.supervisorBinary())}, Shims: p.shimPaths(), Log: p.Log,
		})
	}
	if err != nil {
		return err
	}
	p.later(p.engine.Close)
	p.mapsIDs, err = p.engine.MapsIDs(ctx, p.Config.Containerd.Snapshotter)
	return err
}

// shimPaths are the shims that handlers give as paths.
func (p *parts) shimPaths() []string {
	var paths []string
	for _, h := range p.Config.Runtime.Handlers {
		if filepath.IsAbs(h.Type) {
			paths = append(paths, h.Type)
		}
	}
	return paths
}

func (p *parts) libexec() string { return p.Config.Libexec(p.Executable) }

// fsPath is where snapshots are kept, whose use is reported as that of images.
func (p *parts) fsPath() string {
	if p.engine.Embedded() {
		return filepath.Join(p.paths.Containerd(), "io.containerd.snapshotter.v1."+p.Config.Containerd.Snapshotter)
	}
	return p.paths.Root
}

func (p *parts) openImages(context.Context) (err error) {
	r := p.Config.Registry
	p.images, err = image.New(image.Options{
		Client: p.engine.Client(), Steps: p.steps, Log: p.Log, Namespace: engine.Namespace,
		Snapshotter: p.Config.Containerd.Snapshotter, InProcess: p.engine.Embedded(), FSPath: p.fsPath(),
		RegistryDirs: filepath.SplitList(r.ConfigPath), Pinned: r.Pinned,
		MaxConcurrentDownloads: r.MaxConcurrentDownloads, ProgressTimeout: r.ProgressTimeout.Duration,
	})
	if err != nil {
		return err
	}
	p.later(p.images.Close)
	return nil
}

func (p *parts) openNetwork(context.Context) (err error) {
	n := p.Config.Network
	p.network, err = network.New(network.Options{
		ConfDir: n.ConfDir, BinDirs: p.Config.CNIBinDirs(p.Executable), CacheDir: p.paths.CNI(),
		Default: n.Default, DefaultBridge: n.DefaultBridge, DefaultSubnet: n.DefaultSubnet, DefaultSubnet6: n.DefaultSubnet6,
		Exclusive: n.Exclusive, Timeout: n.Timeout.Duration, InProcess: n.Builtin, Log: p.Log,
	})
	if err != nil {
		return err
	}
	p.later(p.network.Close)
	return nil
}

func (p *parts) openSupervisor(ctx context.Context) (err error) {
	p.reaper = supervisor.NewReaper(p.Log)
	p.later(func() error { p.reaper.Close(); return nil })
	p.hold, err = supervisor.OpenHold(ctx, supervisor.HoldOptions{Binary: p.supervisorBinary(), State: p.paths.State, Log: p.Log})
	if err != nil {
		return err
	}
	p.later(p.hold.Close)
	return p.openFleet(ctx)
}

// supervisorBinary is installed with the other programs, and stands beside
// berth in a build tree.
func (p *parts) supervisorBinary() string {
	const name = "containerd-shim-berth-v1"
	installed := filepath.Join(p.libexec(), name)
	if _, err := os.Stat(installed); err == nil {
		return installed
	}
	return filepath.Join(filepath.Dir(p.Executable), name)
}

func (p *parts) openLifecycles(context.Context) error {
	p.events = &events.Bus[*runtime.ContainerEventResponse]{}
	publisher := &cri.Publisher{Bus: p.events, Store: p.store, Log: p.Log}
	handlers := map[string]container.Handler{}
	for name, h := range p.Config.Runtime.Handlers {
		handlers[name] = container.Handler{
			Type: h.Type, Binary: p.Config.RuncBinary(h, p.Executable), Supervisor: h.SupervisorOf(),
			Pause: h.WantsPause(), ConfigPath: h.ConfigPath,
			PrivilegedWithoutHostDevices: h.PrivilegedWithoutHostDevices,
			PodAnnotations:               h.PodAnnotations, ContainerAnnotations: h.ContainerAnnotations,
		}
	}
	p.containers = container.New(container.Options{
		Paths: p.paths, Store: p.store, Steps: p.steps, Engine: p.engine, Images: p.images, Hold: p.hold,
		Supervisors: fleet{p.fleet}, SupervisorBinary: p.supervisorBinary(),
		Cgroups: p.cgroups, Events: publisher, Log: p.Log, Handlers: handlers, LostOutput: p.metrics.LostOutput,
		Snapshotter: p.Config.Containerd.Snapshotter, CDIDirs: p.Config.Runtime.CDISpecDirs, Kernel: p.kernel, AppArmorDefault: p.loadAppArmor(),
	})
	p.later(p.containers.Close)
	p.sandboxes = sandbox.New(sandbox.Options{
		Paths: p.paths, Store: p.store, Steps: p.steps, Network: p.network, Cgroups: p.cgroups, Reaper: p.reaper,
		InitBinary: p.supervisorBinary(), Containers: p.containers, Pauses: p.containers, Events: publisher, Log: p.Log,
		Handlers: p.handlerNames(), Default: p.Config.Runtime.DefaultHandler, NoUserNamespaces: p.noUserNamespaces,
		CgroupParent: p.Config.CgroupParent(p.cgroups.Driver()),
	})
	p.later(p.sandboxes.Close)
	p.metrics.CountObjects(p.countObjects)
	return nil
}

func (p *parts) handlerNames() []string {
	var names []string
	for name := range p.Config.Runtime.Handlers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (p *parts) startStreams(context.Context) (err error) {
	p.streams, err = stream.New(stream.Options{
		Address: p.Config.Stream.Address, IdleTimeout: p.Config.Stream.IdleTimeout.Duration, Log: p.Log,
		Runtime: &streams{containers: p.containers, store: p.store, paths: p.paths},
	})
	if err != nil {
		return err
	}
	p.later(p.streams.Close)
	return p.streams.Start()
}

// criOptions are those of the gRPC surface.
func (p *parts) criOptions() cri.Options {
	return cri.Options{
		Sandboxes: p.sandboxes, Containers: p.containers, Images: p.images, Network: p.network, Engine: p.engine,
		Store: p.store, Stats: p.stats, Cgroups: p.cgroups, Streams: p.streams, Events: p.events,
		Metrics: p.metrics, Paths: p.paths, Kernel: p.kernel, Handlers: p.handlerNames(),
		RecursiveReadOnly: p.recursiveReadOnly, UserNamespaces: p.userNamespaces, FSPath: p.fsPath(),
		Config: p.Config, Log: p.Log,
	}
}

// recursiveReadOnly: what has runc in it makes mounts read-only with all below
// them where the kernel can; of other runtimes it is not known.
func (p *parts) recursiveReadOnly(handler string) bool {
	h := p.Config.Runtime.Handlers[cmp.Or(handler, p.Config.Runtime.DefaultHandler)]
	return p.kernel.RecursiveReadOnly && (h.Type == config.SupervisorType || h.Type == config.RuncType)
}

// hasRecord tells whether an ID is that of a sandbox or a container.
func (p *parts) hasRecord(id string) bool {
	if _, err := p.store.Containers.Get(id); err == nil {
		return true
	}
	_, err := p.store.Sandboxes.Get(id)
	return err == nil
}
