package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/internal/logs"
	"berth/internal/supervisor/wire"
)

const (
	// drain bounds the wait for a container's last output: a process that it
	// left in another PID namespace may hold the output open.
	drain = 5 * time.Second
	// execDrain is the same for the console of an executed process.
	execDrain = 500 * time.Millisecond
	// maxSpec bounds a bundle's config.json.
	maxSpec = 16 << 20
)

// A container is one container and the processes in it.
type container struct {
	s         *Server
	id        string
	namespace string
	bundle    string
	opts      wire.Options
	made      chan struct{} // closed when create has ended
	failed    error         // of create; set before made is closed
	lib       *libcontainer.Container
	private   bool // it has a PID namespace of its own
	init      *process
	log       *logs.IO // nil: it has no output
	oom       *oomWatch

	// life is held by what makes, starts and deletes the container.
	life sync.Mutex

	mu      sync.Mutex // guards what follows
	started bool
	paused  bool
	deleted bool
	execs   map[string]*process
}

// readSpec reads the bundle's config.json.
func readSpec(bundle string) (*specs.Spec, error) {
	path := filepath.Join(bundle, "config.json")
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > maxSpec {
		return nil, fmt.Errorf("%s has more than %d bytes: %w", path, maxSpec, errdefs.ErrInvalidArgument)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	if spec.Process == nil || spec.Root == nil || spec.Linux == nil {
		return nil, fmt.Errorf("%s: process, root and linux are required: %w", path, errdefs.ErrInvalidArgument)
	}
	return &spec, nil
}

func readOptions(r *taskAPI.CreateTaskRequest) (wire.Options, error) {
	var o wire.Options
	if r.Options == nil || len(r.Options.Value) == 0 {
		return o, nil
	}
	if r.Options.TypeUrl != wire.OptionsType {
		return o, fmt.Errorf("options are %s, want %s: %w", r.Options.TypeUrl, wire.OptionsType, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(r.Options.Value, &o); err != nil {
		return o, fmt.Errorf("options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return o, nil
}

// create makes the container up to the point where its init waits to execute.
func (c *container) create(r *taskAPI.CreateTaskRequest) (err error) {
	spec, err := readSpec(c.bundle)
	if err != nil {
		return err
	}
	c.s.limits.clamp(spec.Process)
	c.init.spec, c.init.terminal = spec.Process, spec.Process.Terminal
	c.init.stdin, c.init.stdout, c.init.stderr = r.Stdin, r.Stdout, r.Stderr
	var unmount func() error
	// A mapped root is mounted with the help of a child.
	err = c.s.forking(func() (err error) { unmount, err = c.mountRoot(r, spec); return err })
	if err != nil {
		return errors.Join(err, c.forget())
	}
	// Once the init has its root, the host needs it no more.
	defer func() {
		err = errors.Join(err, unmount())
		if err != nil {
			c.undoCreate()
		}
	}()
	config, err := c.config(spec)
	if err != nil {
		return err
	}
	if err := c.save(); err != nil {
		return err
	}
	if err := c.openLog(config); err != nil {
		return err
	}
	if c.lib, err = libcontainer.Create(c.s.run, c.id, config); err != nil {
		return err
	}
	return c.startInit(spec.Process)
}

// config is the spec for libcontainer.
func (c *container) config(spec *specs.Spec) (config *configs.Config, err error) {
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.UserNamespace && ns.Path != "" {
			// libcontainer finds them, by a child that it sends there.
			spec.Linux.UIDMappings, spec.Linux.GIDMappings = nil, nil
		}
	}
	err = c.s.forking(func() (err error) {
		config, err = specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
			CgroupName: c.id, UseSystemdCgroup: c.opts.SystemdCgroup, Spec: spec,
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("spec: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	// libcontainer takes the working directory for the bundle.
	for i, label := range config.Labels {
		if strings.HasPrefix(label, "bundle=") {
			config.Labels[i] = "bundle=" + c.bundle
		}
	}
	if r := config.Cgroups.Resources; r != nil && cgroups.IsCgroup2UnifiedMode() {
		sayNoSwap(r)
	}
	c.private = config.Namespaces.IsPrivate(configs.NEWPID)
	return config, nil
}

// mountRoot mounts the container's root file system outside the bundle, which
// containerd unmounts when it thinks that this process is gone. The directory
// stays until the container is deleted: libcontainer starts processes in it.
func (c *container) mountRoot(r *taskAPI.CreateTaskRequest, spec *specs.Spec) (unmount func() error, err error) {
	nothing := func() error { return nil }
	if len(r.Rootfs) == 0 {
		if !filepath.IsAbs(spec.Root.Path) {
			spec.Root.Path = filepath.Join(c.bundle, spec.Root.Path)
		}
		return nothing, nil
	}
	dir := c.rootDir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nothing, err
	}
	if err := admitRoot(filepath.Dir(dir), spec); err != nil {
		return nothing, err
	}
	unmount = func() error { return unmountRoot(dir) }
	var mounts []mount.Mount
	for _, m := range r.Rootfs {
		mounts = append(mounts, mount.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	if err := mount.All(mounts, dir); err != nil {
		return nothing, errors.Join(fmt.Errorf("mount root file system: %w", err), unmount())
	}
	spec.Root.Path = dir
	return unmount, nil
}

// admitRoot lets the group of a user namespace's root pass a directory.
func admitRoot(dir string, spec *specs.Spec) error {
	for _, m := range spec.Linux.GIDMappings {
		if m.ContainerID == 0 {
			return errors.Join(os.Chown(dir, 0, int(m.HostID)), os.Chmod(dir, 0o710))
		}
	}
	return nil
}

func (c *container) rootDir() string { return c.s.rootDir(c.id) }

// rootDir is in a directory of the container's own, which keeps others out.
func (s *Server) rootDir(id string) string { return filepath.Join(s.roots, id, "root") }

func unmountRoot(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // not mounted
	}
	return err
}

// openLog opens the container's own FIFOs and its log.
func (c *container) openLog(config *configs.Config) (err error) {
	if c.opts.Stdio == "" {
		return nil
	}
	if c.log, err = logs.Open(c.logOptions()); err != nil {
		return err
	}
	uid, gid, err := hostRoot(config)
	if err != nil {
		return err
	}
	return c.init.io.openOwn(c.opts.Stdio, c.opts.Stdin, c.init.terminal, uid, gid)
}

func (c *container) logOptions() logs.Options {
	return logs.Options{
		Dir: c.opts.Stdio, ID: c.id, Stdin: c.opts.Stdin, StdinOnce: c.opts.StdinOnce, TTY: c.init.terminal,
		LogPath: c.opts.LogPath, Log: c.s.Log,
	}
}

func (c *container) startInit(spec *specs.Process) error {
	lp, err := libProcess(spec)
	if err != nil {
		return err
	}
	lp.Init = true
	c.init.connect(lp)
	c.init.lib = lp
	if err := c.s.forking(func() error { return launch(c.lib, lp, c.init) }); err != nil {
		return err
	}
	if err := c.init.io.given(); err != nil {
		return errors.Join(err, lp.Signal(unix.SIGKILL))
	}
	if c.log != nil {
		c.log.Running()
	}
	c.oom = c.s.watchOOM(c)
	return c.save()
}

// undoCreate takes back what a failed create made.
func (c *container) undoCreate() {
	c.init.mu.Lock()
	c.init.forgetLocked()
	c.init.mu.Unlock()
	errs := []error{}
	if c.oom != nil {
		c.oom.close()
	}
	if c.lib != nil {
		errs = append(errs, c.s.forking(c.lib.Destroy))
	}
	c.init.io.close()
	if c.log != nil {
		errs = append(errs, c.log.Close())
	}
	errs = append(errs, c.forget())
	if err := errors.Join(errs...); err != nil {
		c.s.Log.Warn("what is left of a container that could not be made", "container", c.id, "err", err)
	}
}

// start lets the init execute what the container is for.
func (c *container) start() error {
	c.life.Lock()
	defer c.life.Unlock()
	if _, running, _ := c.init.status(); !running {
		return fmt.Errorf("container %s has ended: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	c.mu.Lock()
	started := c.started
	c.mu.Unlock()
	if started {
		return fmt.Errorf("container %s was started: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	if err := c.s.forking(c.lib.Exec); err != nil {
		return err
	}
	c.mu.Lock()
	c.started = true
	c.mu.Unlock()
	return c.save()
}

// initEnded follows the end of the init: what it left running is killed, and
// what it wrote is in the log when this returns.
func (c *container) initEnded(end exit) {
	if !c.private {
		if err := c.lib.Signal(unix.SIGKILL); err != nil && !errors.Is(err, libcontainer.ErrNotRunning) {
			c.s.Log.Warn("processes that a container left are not killed", "container", c.id, "err", err)
		}
	}
	if c.init.terminal {
		c.init.io.drained(drain)
	}
	_ = c.init.io.closeStdin() // nobody reads it any more
	if c.log != nil {
		c.log.Running() // also after an adoption: the end of file is the end
		timer := time.NewTimer(drain)
		select {
		case <-c.log.Drained():
		case <-timer.C:
			c.s.Log.Warn("output of a container goes on after its end; what comes now is not in its log", "container", c.id)
		}
		timer.Stop()
	}
	if err := c.save(); err != nil {
		c.s.Log.Error("the end of a container is not written down", "container", c.id, "err", err)
	}
}

// kill sends a signal to the init, or to all processes.
func (c *container) kill(ctx context.Context, sig unix.Signal, all bool) error {
	err := c.init.signal(sig)
	switch {
	case err != nil && !errdefs.IsNotFound(err):
		return err
	case sig == unix.SIGKILL && (!c.private || c.isPaused()):
		// Its whole cgroup, and a frozen one is thawed.
		if libErr := c.lib.Signal(sig); libErr != nil && !errors.Is(libErr, libcontainer.ErrNotRunning) {
			c.s.Log.Debug("kill of all processes", "container", c.id, "err", libErr)
		}
	case all && err == nil:
		pids, pidsErr := c.lib.Processes()
		if pidsErr != nil {
			return pidsErr
		}
		for _, pid := range pids {
			// The init has it. Others may have ended.
			if own, _, _ := c.init.status(); pid != own && ctx.Err() == nil {
				_ = unix.Kill(pid, sig)
			}
		}
	}
	return err
}

func (c *container) isPaused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.paused
}

// delete removes a container that does not run. ErrFailedPrecondition: it does.
func (c *container) delete(ctx context.Context) (exit, error) {
	c.life.Lock()
	defer c.life.Unlock()
	c.mu.Lock()
	started := c.started
	c.mu.Unlock()
	_, running, end := c.init.status()
	if running {
		if started {
			return end, fmt.Errorf("container %s runs; kill it first: %w", c.id, errdefs.ErrFailedPrecondition)
		}
		if err := c.kill(ctx, unix.SIGKILL, true); err != nil && !errdefs.IsNotFound(err) {
			return end, err
		}
		select {
		case <-c.init.exited:
		case <-ctx.Done():
			return end, ctx.Err()
		}
		_, _, end = c.init.status()
	}
	if c.oom != nil {
		c.oom.close()
	}
	if err := c.s.forking(c.lib.Destroy); err != nil {
		return end, err
	}
	c.init.io.close()
	c.mu.Lock()
	execs := c.execs
	c.execs, c.deleted = nil, true
	c.mu.Unlock()
	for _, p := range execs {
		p.io.close()
	}
	var err error
	if c.log != nil {
		err = c.log.Close()
	}
	return end, errors.Join(err, c.forget())
}

// exec returns the executed process of an ID.
func (c *container) exec(execID string) (*process, error) {
	if execID == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.execs[execID]
	if p == nil {
		return nil, fmt.Errorf("process %s of container %s: %w", execID, c.id, errdefs.ErrNotFound)
	}
	return p, nil
}

// startExec starts a process beside the init.
func (c *container) startExec(ctx context.Context, p *process) error {
	if _, running, _ := c.init.status(); !running {
		return fmt.Errorf("container %s has ended: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	c.s.limits.clamp(p.spec)
	lp, err := libProcess(p.spec)
	if err != nil {
		return err
	}
	// An object of its own, so that several start side by side.
	lib, err := libcontainer.Load(c.s.run, c.id)
	if err != nil {
		return err
	}
	config := lib.Config()
	uid, gid, err := hostRoot(&config)
	if err != nil {
		return err
	}
	if err := p.io.openClient(ctx, p, uid, gid); err != nil {
		return err
	}
	p.connect(lp)
	p.lib = lp
	if err := c.s.forking(func() error { return launch(lib, lp, p) }); err != nil {
		p.io.close()
		return err
	}
	if err := p.io.given(); err != nil {
		return errors.Join(err, lp.Signal(unix.SIGKILL))
	}
	return nil
}

// launch has libcontainer start a process and watches it from its first
// moment.
func launch(lib *libcontainer.Container, lp *libcontainer.Process, p *process) error {
	if err := lib.Start(lp); err != nil {
		return err
	}
	pid, err := lp.Pid()
	if err == nil {
		err = p.watch(pid)
	}
	if err != nil {
		_ = lp.Signal(unix.SIGKILL) // what counts is err
		_, _ = lp.Wait()
	}
	return err
}
