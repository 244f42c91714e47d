package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth/internal/host"
	"berth/internal/supervisor/wire"
)

// FleetOptions configure a Fleet. All but Events and Isolate are required.
type FleetOptions struct {
	// Binary is the program containerd-shim-berth-v1.
	Binary string
	// State is the daemon's state directory, absolute.
	State string
	// Version is the daemon's; supervisors of another one are left to end with
	// their last container.
	Version string
	// Events is the ttrpc socket of containerd; empty: it is told nothing.
	Events string
	// Isolate moves the process of a supervisor out of the daemon's cgroup.
	Isolate func(ctx context.Context, name string, pid int) error
	Log     *slog.Logger
}

// A Fleet is the daemon's supervisors: those that it starts and those of
// earlier daemons. One that dies while containers need it is started again,
// and takes them up.
type Fleet struct {
	opts   FleetOptions
	reaper *Reaper
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex // guards what follows; nothing is waited for under it
	links  map[string]*link
	closed bool
}

// A link is the connection to one supervisor.
type link struct {
	name string
	// busy has room for the one who connects or starts it.
	busy chan struct{}

	mu    sync.Mutex // guards what follows
	watch *wire.Conn // nil: none
	ended chan struct{}
	users map[string]*kept // by container
}

// kept is what the next supervisor needs of a container.
type kept struct {
	mu    sync.Mutex // held while the descriptors are sent or closed
	names []string
	fds   []int
	// fifos hold what the container wrote last while no supervisor runs.
	fifos []int
	// noStdin says that the container's input has ended: nobody may hold it
	// open any more.
	noStdin bool
}

func (k *kept) close() error {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	err := errors.Join(wire.Close(k.fds), wire.Close(k.fifos))
	k.names, k.fds, k.fifos = nil, nil, nil
	return err
}

// dropStdin closes what is kept of a container's input, now and from now on.
func (k *kept) dropStdin() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.noStdin = true
	i := slices.Index(k.names, wire.FileStdin)
	if i < 0 {
		return nil
	}
	fd := k.fds[i]
	k.names, k.fds = slices.Delete(k.names, i, i+1), slices.Delete(k.fds, i, i+1)
	return unix.Close(fd)
}

// endStdin says that a container's input is to end.
func (f *Fleet) endStdin(name, id string) error {
	l := f.link(name)
	l.mu.Lock()
	k := l.users[id]
	if k == nil {
		k = &kept{}
		l.users[id] = k
	}
	l.mu.Unlock()
	return k.dropStdin()
}

// NewFleet returns a Fleet; it starts nothing. Close ends it.
func NewFleet(o FleetOptions) (*Fleet, error) {
	if o.Binary == "" || !filepath.IsAbs(o.State) || o.Version == "" || o.Log == nil {
		return nil, fmt.Errorf("supervisors: Binary %q, an absolute State %q, Version %q and Log are required: %w", o.Binary, o.State, o.Version, errdefs.ErrInvalidArgument)
	}
	f := &Fleet{opts: o, reaper: NewReaper(o.Log), links: map[string]*link{}}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f, nil
}

// NodeName is the name of the supervisor that pods share.
func (f *Fleet) NodeName() string { return wire.NodeName(f.opts.Version) }

// PodName is the name of a pod's own supervisor.
func (f *Fleet) PodName(sandboxID string) string { return wire.PodName(f.opts.Version, sandboxID) }

// Endpoint is where containerd finds the Task API of a supervisor.
func (f *Fleet) Endpoint(name string) string {
	return "ttrpc+unix://" + wire.Socket(f.opts.State, name)
}

// Left are the supervisors of earlier daemons that have containers, running or
// not.
func (f *Fleet) Left() ([]string, error) {
	dir := filepath.Join(f.opts.State, wire.Dir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".d")
		if !ok || !wire.ValidName(name) {
			continue
		}
		tasks, err := os.ReadDir(filepath.Join(dir, e.Name(), wire.Tasks))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if len(tasks) > 0 {
			names = append(names, name)
			continue
		}
		f.sweep(name)
	}
	return names, nil
}

// sweep removes the home of a supervisor that has ended and has nothing left.
func (f *Fleet) sweep(name string) {
	if name == f.NodeName() {
		return
	}
	if c, err := wire.Dial(wire.Home(f.opts.State, name)); err == nil {
		_ = c.Close() // it runs
		return
	}
	err := errors.Join(host.UnmountBelow(wire.Roots(f.opts.State, name)), host.RemoveTree(f.opts.State, filepath.Join(wire.RootsDir, name)))
	if err == nil {
		err = host.RemoveTree(f.opts.State, filepath.Join(wire.Dir, name+".d"))
	}
	if err != nil {
		f.opts.Log.Warn("the directory of a supervisor that has ended stays", "supervisor", name, "err", err)
	}
}

func (f *Fleet) link(name string) *link {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.links[name]
	if l == nil {
		l = &link{name: name, busy: make(chan struct{}, 1), users: map[string]*kept{}}
		f.links[name] = l
	}
	return l
}

// Ensure makes sure that a supervisor runs, for a container, until Release; an
// empty ID is the daemon itself.
//
// Errors: ErrUnavailable where it cannot be started; ctx's.
func (f *Fleet) Ensure(ctx context.Context, name, id string) error {
	l := f.link(name)
	l.mu.Lock()
	if _, ok := l.users[id]; !ok {
		l.users[id] = nil
	}
	l.mu.Unlock()
	return f.connect(ctx, l)
}

// connect returns when the link has a connection.
func (f *Fleet) connect(ctx context.Context, l *link) error {
	select {
	case l.busy <- struct{}{}:
		defer func() { <-l.busy }()
	case <-ctx.Done():
		return ctx.Err()
	case <-f.ctx.Done():
		return fmt.Errorf("supervisor %s: the daemon stops: %w", l.name, errdefs.ErrUnavailable)
	}
	if l.connected() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c, err := f.open(ctx, l.name)
	if err != nil {
		return fmt.Errorf("supervisor %s: %w: %w", l.name, err, errdefs.ErrUnavailable)
	}
	f.giveBack(l) // before anybody asks the new one how a container ended
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return errors.Join(fmt.Errorf("supervisor %s: the daemon stops: %w", l.name, errdefs.ErrUnavailable), c.Close())
	}
	l.mu.Lock()
	l.watch, l.ended = c, make(chan struct{})
	l.mu.Unlock()
	f.wg.Add(1)
	go f.follow(l, c)
	return nil
}

func (l *link) connected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.watch != nil
}

// follow notices the end of a supervisor, and starts another where it is
// needed.
func (f *Fleet) follow(l *link, c *wire.Conn) {
	defer f.wg.Done()
	var none wire.Response
	_, err := c.Receive(&none) // nothing more comes
	_ = c.Close()              // it is of no more use
	l.mu.Lock()
	l.watch = nil
	close(l.ended)
	needed := len(l.users) > 0
	l.mu.Unlock()
	if f.ctx.Err() != nil || !needed {
		return
	}
	f.opts.Log.Warn("a supervisor ended; another one is started and takes up its containers", "supervisor", l.name, "err", err)
	for pause := restartWait; ; pause = min(2*pause, restartMax) {
		if err = f.connect(f.ctx, l); err == nil {
			return
		}
		if f.ctx.Err() != nil {
			return
		}
		f.opts.Log.Error("no supervisor: containers run on, but none is started or followed; it is tried again", "supervisor", l.name, "err", err)
		select {
		case <-time.After(pause):
		case <-f.ctx.Done():
			return
		}
	}
}

// giveBack hands a new supervisor what was kept for it.
func (f *Fleet) giveBack(l *link) {
	l.mu.Lock()
	ids := make([]string, 0, len(l.users))
	for id, k := range l.users {
		if k != nil {
			ids = append(ids, id)
		}
	}
	l.mu.Unlock()
	for _, id := range ids {
		if err := f.restore(l, id); err != nil && !errdefs.IsNotFound(err) {
			f.opts.Log.Warn("what was kept for a container is not taken back", "container", id, "supervisor", l.name, "err", err)
		}
	}
}

func (f *Fleet) restore(l *link, id string) error {
	ctx, cancel := context.WithTimeout(f.ctx, callTimeout)
	defer cancel()
	l.mu.Lock()
	k := l.users[id]
	l.mu.Unlock()
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.names) == 0 {
		return nil
	}
	_, _, err := f.call(ctx, l.name, wire.Request{Op: wire.OpRestore, ID: id, Files: k.names}, k.fds...)
	return err
}

// Release says that a container needs its supervisor no more. A supervisor
// that nobody needs ends when it has no container.
func (f *Fleet) Release(name, id string) error {
	l := f.link(name)
	l.mu.Lock()
	k := l.users[id]
	delete(l.users, id)
	watch := l.watch
	unused := len(l.users) == 0
	l.mu.Unlock()
	err := k.close()
	if unused && watch != nil {
		err = errors.Join(err, ignoreClosed(watch.Close()))
	}
	return err
}

// Keep takes what the next supervisor would need of a container, should this
// one be killed: its pidfd, its console, and its FIFOs in dir.
func (f *Fleet) Keep(ctx context.Context, name, id, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, fds, err := f.call(ctx, name, wire.Request{Op: wire.OpKeep, ID: id})
	if err != nil {
		return err
	}
	k := &kept{names: res.Files, fds: fds}
	for _, stream := range []string{"stdout", "stderr"} {
		// Not as a file of Go's, which would be polled.
		fifo, err := unix.Open(filepath.Join(dir, stream), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if errors.Is(err, unix.ENOENT) {
			continue // a terminal has one
		}
		if err != nil {
			return errors.Join(err, k.close())
		}
		k.fifos = append(k.fifos, fifo)
	}
	l := f.link(name)
	l.mu.Lock()
	old, ok := l.users[id]
	if ok {
		l.users[id] = k
	}
	l.mu.Unlock()
	if !ok { // it was released meanwhile
		return k.close()
	}
	if old != nil && old.noStdin {
		err = k.dropStdin()
	}
	return errors.Join(err, old.close())
}

// Close ends the connections and all goroutines. Supervisors stay while they
// have containers. Closing twice is safe.
func (f *Fleet) Close() error {
	f.cancel()
	f.mu.Lock()
	f.closed = true
	links := make([]*link, 0, len(f.links))
	for _, l := range f.links {
		links = append(links, l)
	}
	f.mu.Unlock()
	var errs []error
	for _, l := range links {
		l.mu.Lock()
		if l.watch != nil {
			errs = append(errs, ignoreClosed(l.watch.Close()))
		}
		for id, k := range l.users {
			errs = append(errs, k.close())
			delete(l.users, id)
		}
		l.mu.Unlock()
	}
	f.wg.Wait()
	f.reaper.Close()
	return errors.Join(errs...)
}
