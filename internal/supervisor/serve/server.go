// Package serve is the supervisor: containerd's Task API with runc's
// libcontainer in this process. It creates, starts, watches and deletes
// containers, writes their logs and holds their stdio. It outlives the daemon,
// and containers outlive it.
//
// Invariants:
//   - A container's state file is there before its first process and gone after
//     its last resource, so the next supervisor takes up what this one leaves
//     when it is killed (FORMAT.md in internal/supervisor).
//   - Each process is waited for by its pidfd, from before anybody is told that
//     it runs. No exit is lost or taken by another waiter.
//   - The end of a container is told when its output is in its log.
//   - It ends by itself when it has no container and nobody watches it.
//
// Concurrency: one goroutine polls for all ends of processes and lack of
// memory. Each call, each attached client and each stream of output that has
// something to carry has its goroutine; all end with Run, whose caller then
// ends the process.
package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	_ "github.com/opencontainers/cgroups/devices" // has libcontainer manage devices
	"golang.org/x/sys/unix"

	"berth/internal/supervisor/publish"
	"berth/internal/supervisor/watch"
	"berth/internal/supervisor/wire"
)

// ErrRunning says that another process is the supervisor of this name.
var ErrRunning = errors.New("another supervisor of this name runs")

const (
	// restoreWait is how long the kept pidfd of a container that ended while no
	// supervisor ran is waited for.
	restoreWait = 5 * time.Second
	// maxSocket is what fits the kernel's sockaddr_un.
	maxSocket = 107
)

// A Server is one supervisor. State, Name and Log are required.
type Server struct {
	// State is the daemon's state directory, absolute.
	State string
	// Name is one that wire.ValidName allows.
	Name string
	// Events is containerd's ttrpc socket; empty: containerd is told nothing.
	Events string
	// Linger is how long it stays without containers and watchers; default 2
	// seconds.
	Linger time.Duration
	Log    *slog.Logger
	// Ready is called once when clients can connect.
	Ready func()

	home, tasks, run, roots string
	poll                    *watch.Poller
	limits                  *limits
	events                  *publish.Publisher
	forks                   sync.RWMutex // held for reading by forking
	idle                    chan struct{}
	stop                    chan struct{}
	stopOnce                sync.Once
	wg                      sync.WaitGroup

	mu         sync.Mutex // guards what follows; nothing is waited for under it
	containers map[string]*container
	conns      map[net.Conn]bool
	watchers   int
}

// Run serves until ctx ends or there is nothing to do. Containers stay.
// ErrRunning: there is another one.
func (s *Server) Run(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.open(); err != nil {
		return err
	}
	locked, err := s.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, locked.Close()) }()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	if s.poll, err = watch.New(); err != nil {
		return err
	}
	defer s.poll.Close()
	s.wg.Go(func() { s.events.Run(ctx) })
	s.wg.Go(func() { s.reapOrphans(ctx) })
	defer s.wg.Wait()
	defer cancel()
	if err := s.adoptAll(); err != nil {
		return err
	}
	return s.serve(ctx)
}

// open checks the options and sets what follows from them.
func (s *Server) open() error {
	if !filepath.IsAbs(s.State) || !wire.ValidName(s.Name) || s.Log == nil {
		return fmt.Errorf("supervisor: an absolute State %q, a short Name %q and Log are required: %w", s.State, s.Name, errdefs.ErrInvalidArgument)
	}
	if socket := wire.Socket(s.State, s.Name); len(socket) > maxSocket {
		return fmt.Errorf("supervisor: socket %s has %d bytes, at most %d fit; choose a shorter state directory: %w", socket, len(socket), maxSocket, errdefs.ErrInvalidArgument)
	}
	if s.Linger == 0 {
		s.Linger = 2 * time.Second
	}
	s.home = wire.Home(s.State, s.Name)
	s.tasks, s.run = filepath.Join(s.home, wire.Tasks), filepath.Join(s.home, wire.Run)
	s.roots = wire.Roots(s.State, s.Name)
	s.containers, s.conns = map[string]*container{}, map[net.Conn]bool{}
	s.idle, s.stop = make(chan struct{}, 1), make(chan struct{})
	s.limits = readLimits(s.Log)
	s.events = publish.New(s.Events, s.Log)
	return nil
}

// lock takes the supervisor's name. The one that has it removes the file when
// it leaves, so that what was locked is looked at once more.
func (s *Server) lock() (*os.File, error) {
	path := filepath.Join(s.home, wire.Lock)
	for {
		if err := s.makeDirectories(); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(ErrRunning, f.Close())
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock: %w", err), f.Close())
		}
		locked, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if there, err := os.Stat(path); err == nil && os.SameFile(there, locked) {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

func (s *Server) makeDirectories() error {
	if err := os.MkdirAll(filepath.Dir(s.home), 0o700); err != nil {
		return err
	}
	// Containers with user namespaces reach their FIFO and root through these.
	for _, dir := range []string{s.home, s.tasks, s.run, filepath.Dir(s.roots), s.roots} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	return nil
}

// listen makes a socket in a directory, in place of one that was left. The
// lock is ours.
func listen(path, name string) (*net.UnixListener, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := removeIfThere(filepath.Join(path, name)); err != nil {
		return nil, err
	}
	address := wire.Address(dir, name)
	l, err := net.ListenUnix("unix", address)
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(address.Name, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (s *Server) serve(ctx context.Context) error {
	control, err := listen(s.home, wire.Control)
	if err != nil {
		return err
	}
	tasks, err := listen(filepath.Dir(s.home), s.Name)
	if err != nil {
		return errors.Join(err, control.Close())
	}
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err != nil {
		return errors.Join(err, control.Close(), tasks.Close())
	}
	taskAPI.RegisterTTRPCTaskService(server, service{s})
	failed := make(chan error, 1)
	s.wg.Go(func() {
		if err := server.Serve(ctx, tasks); err != nil && !errors.Is(err, ttrpc.ErrServerClosed) {
			failed <- fmt.Errorf("serve tasks: %w", err)
		}
	})
	s.wg.Go(func() { s.accept(ctx, control) })
	if s.Ready != nil {
		s.Ready()
	}
	err = s.wait(ctx, failed)
	// A client that connects from here on finds nobody and starts another.
	errs := []error{err, removeIfThere(wire.Socket(s.State, s.Name)), removeIfThere(filepath.Join(s.home, wire.Control)), server.Close(), control.Close()}
	s.closeConns()
	return errors.Join(append(errs, s.leave())...)
}

// wait returns when the supervisor is to end.
func (s *Server) wait(ctx context.Context, failed <-chan error) error {
	s.nudge()
	linger := time.NewTimer(s.Linger)
	defer linger.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.stop:
			return nil
		case err := <-failed:
			return err
		case <-s.idle:
			linger.Reset(s.Linger)
		case <-linger.C:
			if !s.busy() {
				return nil
			}
		}
	}
}

// leave gives up the containers for the next supervisor; where there is none
// the home goes too.
func (s *Server) leave() error {
	s.mu.Lock()
	list := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		list = append(list, c)
	}
	s.mu.Unlock()
	var errs []error
	for _, c := range list {
		if c.log != nil {
			errs = append(errs, c.log.Close())
		}
		for _, p := range c.processes() {
			p.io.close()
		}
	}
	if len(list) == 0 {
		errs = append(errs, removeIfThere(s.roots))
		for _, name := range []string{wire.Run, wire.Tasks, wire.Log, wire.Lock, ""} {
			errs = append(errs, removeIfThere(filepath.Join(s.home, name)))
		}
	}
	return errors.Join(errs...)
}

// nudge has wait look anew whether there is something to do.
func (s *Server) nudge() {
	select {
	case s.idle <- struct{}{}:
	default:
	}
}

func (s *Server) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.containers) > 0 || s.watchers > 0
}

// endIfEmpty ends Run if there is no container.
func (s *Server) endIfEmpty() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.containers) == 0 {
		s.stopOnce.Do(func() { close(s.stop) })
	}
}

func (s *Server) newContainer(id, namespace, bundle string, opts wire.Options) *container {
	c := &container{s: s, id: id, namespace: namespace, bundle: bundle, opts: opts, made: make(chan struct{}), execs: map[string]*process{}}
	c.init = newProcess(c, "", nil)
	return c
}

// reserve takes the ID for a new container; false: there is one.
func (s *Server) reserve(r *taskAPI.CreateTaskRequest, opts wire.Options, namespace string) (*container, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[r.ID]; c != nil {
		return c, false
	}
	c := s.newContainer(r.ID, namespace, r.Bundle, opts)
	s.containers[r.ID] = c
	return c, true
}

// drop gives the ID back. failed is why the container could not be made.
func (s *Server) drop(c *container, failed error) {
	s.mu.Lock()
	delete(s.containers, c.id)
	s.mu.Unlock()
	if failed != nil {
		c.failed = failed
		close(c.made)
	}
	s.nudge()
}
