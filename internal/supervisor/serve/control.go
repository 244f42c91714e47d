package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth/internal/logs"
	"berth/internal/supervisor/watch"
	"berth/internal/supervisor/wire"
)

// removeTimeout bounds OpDelete.
const removeTimeout = 15 * time.Second

// accept serves the control protocol until the listener is closed.
func (s *Server) accept(ctx context.Context, l *net.UnixListener) {
	for {
		c, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.Log.Warn("a control connection is not accepted", "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(reapAgain):
			}
			continue
		}
		s.mu.Lock()
		s.conns[c] = true
		s.mu.Unlock()
		s.wg.Go(func() {
			s.converse(ctx, &wire.Conn{UnixConn: c})
			_ = c.Close() // what was said was said
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
			s.nudge()
		})
	}
}

func (s *Server) closeConns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close() // the other side sees the end
	}
}

// converse answers requests until the client goes.
func (s *Server) converse(ctx context.Context, c *wire.Conn) {
	watching := false
	defer func() {
		if watching {
			s.mu.Lock()
			s.watchers--
			s.mu.Unlock()
		}
	}()
	for {
		var req wire.Request
		fds, err := c.Receive(&req)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, unix.ECONNRESET) {
				_ = c.Send(failure(fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument))) // it may have gone
			}
			return
		}
		if req.Op == wire.OpWatch && !watching && req.Version == wire.Version {
			watching = true
			s.mu.Lock()
			s.watchers++
			s.mu.Unlock()
		}
		if req.Op == wire.OpAttach && req.Version == wire.Version {
			s.attach(ctx, c, req)
			return
		}
		res, out := s.answer(ctx, req, fds)
		err = c.Send(res, out...)
		if err = errors.Join(err, wire.Close(fds), wire.Close(out)); err != nil {
			return
		}
	}
}

// failure is an error for the other side.
func failure(err error) wire.Response {
	res := wire.Response{Version: wire.Version, Error: err.Error()}
	switch {
	case errdefs.IsNotFound(err):
		res.Kind = wire.KindNotFound
	case errdefs.IsFailedPrecondition(err):
		res.Kind = wire.KindPrecondition
	case errdefs.IsInvalidArgument(err):
		res.Kind = wire.KindInvalid
	case errdefs.IsResourceExhausted(err):
		res.Kind = wire.KindExhausted
	case errdefs.IsUnavailable(err):
		res.Kind = wire.KindUnavailable
	}
	return res
}

// answer does what a request asks; out are descriptors to send, to be closed.
func (s *Server) answer(ctx context.Context, req wire.Request, in []int) (res wire.Response, out []int) {
	res = wire.Response{Version: wire.Version, OK: true, PID: os.Getpid()}
	var err error
	switch {
	case req.Version != wire.Version:
		err = fmt.Errorf("the request has version %d, this supervisor knows %d: %w", req.Version, wire.Version, errdefs.ErrInvalidArgument)
	case req.Op == wire.OpWatch:
	case req.Op == wire.OpTasks:
		res.Tasks = s.list(req.ID)
	case req.Op == wire.OpReopen:
		err = s.reopen(ctx, req.ID)
	case req.Op == wire.OpDelete:
		err = s.remove(ctx, req.ID)
	case req.Op == wire.OpKeep:
		res.Files, out, err = s.keep(ctx, req.ID)
	case req.Op == wire.OpRestore:
		err = s.restore(ctx, req, in)
	default:
		err = fmt.Errorf("operation %q is unknown: %w", req.Op, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		res = failure(err)
	}
	return res, out
}

// list shows the containers, or the one of an ID.
func (s *Server) list(id string) []wire.Task {
	s.mu.Lock()
	list := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		if id == "" || c.id == id {
			list = append(list, c)
		}
	}
	s.mu.Unlock()
	tasks := []wire.Task{}
	for _, c := range list {
		pid, running, end := c.init.status()
		tasks = append(tasks, wire.Task{ID: c.id, PID: pid, Exited: pid != 0 && !running, Reason: end.Reason})
	}
	return tasks
}

// remove kills and deletes a container.
func (s *Server) remove(ctx context.Context, id string) error {
	c, err := s.find(ctx, id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	if err := c.kill(ctx, unix.SIGKILL, true); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	select {
	case <-c.init.exited:
	case <-ctx.Done():
		return fmt.Errorf("container %s does not end of SIGKILL: %w", id, errdefs.ErrUnavailable)
	}
	end, err := c.delete(ctx)
	if err != nil {
		return err
	}
	s.drop(c, nil)
	s.deletedEvent(c.init, end)
	return nil
}

func (s *Server) logOf(ctx context.Context, id string) (*logs.IO, *container, error) {
	c, err := s.find(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	if c.log == nil {
		return nil, nil, fmt.Errorf("container %s has no output: %w", id, errdefs.ErrFailedPrecondition)
	}
	return c.log, c, nil
}

func (s *Server) reopen(ctx context.Context, id string) error {
	log, _, err := s.logOf(ctx, id)
	if err != nil {
		return err
	}
	return log.Reopen()
}

// A framer sends one stream's output as frames. Two share the lock.
type framer struct {
	c      *wire.Conn
	mu     *sync.Mutex
	stream byte
}

func (f framer) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for sent := 0; sent < len(p); sent += wire.MaxFrame {
		if err := wire.WriteFrame(f.c, f.stream, p[sent:min(len(p), sent+wire.MaxFrame)]); err != nil {
			return sent, err
		}
	}
	return len(p), nil
}

// attach sends a container's output from now on. The client takes it at its
// own pace, up to a limit; the connection's end is the client's.
func (s *Server) attach(ctx context.Context, c *wire.Conn, req wire.Request) {
	log, box, err := s.logOf(ctx, req.ID)
	if err != nil {
		_ = c.Send(failure(err)) // it may have gone
		return
	}
	box.init.io.mu.Lock()
	res := wire.Response{Version: wire.Version, OK: true, StdinClosed: box.init.io.noMore}
	box.init.io.mu.Unlock()
	var mu sync.Mutex
	o := logs.AttachOptions{Attached: func() error { return c.Send(res) }}
	if req.Stdout {
		o.Stdout = framer{c, &mu, wire.FrameStdout}
	}
	if req.Stderr {
		o.Stderr = framer{c, &mu, wire.FrameStderr}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.wg.Go(func() { // ends when the connection is closed
		_, _ = io.Copy(io.Discard, c)
		cancel()
	})
	err = log.Attach(ctx, o)
	// Whatever still waits for the client to read ends now.
	if errdefs.IsResourceExhausted(err) || ctx.Err() != nil {
		_ = c.Close()
		return
	}
	last := wire.Response{Version: wire.Version, OK: true}
	if err != nil {
		last = failure(err)
	}
	if data, err := json.Marshal(last); err == nil {
		mu.Lock()
		_ = wire.WriteFrame(c, wire.FrameEnd, data) // it may have gone
		mu.Unlock()
	}
}

// keep duplicates what a container's stdio and end depend on.
func (s *Server) keep(ctx context.Context, id string) (names []string, fds []int, err error) {
	c, err := s.find(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	add := func(name string, fd int) {
		if err != nil || fd < 0 {
			return
		}
		var copied int
		if copied, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err == nil {
			names, fds = append(names, name), append(fds, copied)
		}
	}
	p := c.init
	p.mu.Lock()
	add(wire.FilePIDFD, p.pidfd)
	p.mu.Unlock()
	p.io.mu.Lock()
	for name, f := range map[string]*os.File{wire.FileConsole: p.io.master, wire.FileStdin: p.io.stdin} {
		if f == nil {
			continue
		}
		raw, rawErr := f.SyscallConn()
		if err = errors.Join(err, rawErr); err == nil {
			err = errors.Join(err, raw.Control(func(fd uintptr) { add(name, int(fd)) }))
		}
	}
	p.io.mu.Unlock()
	if err != nil {
		return nil, nil, errors.Join(err, wire.Close(fds))
	}
	return names, fds, nil
}

// restore takes back what somebody kept for a container that was adopted. The
// descriptors stay the caller's.
func (s *Server) restore(ctx context.Context, req wire.Request, in []int) error {
	c, err := s.find(ctx, req.ID)
	if err != nil {
		return err
	}
	if len(in) != len(req.Files) {
		return fmt.Errorf("%d descriptors are named and %d came: %w", len(req.Files), len(in), errdefs.ErrInvalidArgument)
	}
	for i, name := range req.Files {
		switch name {
		case wire.FilePIDFD:
			err = errors.Join(err, c.init.restoreEnd(in[i]))
		case wire.FileConsole:
			err = errors.Join(err, c.restoreConsole(in[i]))
		}
	}
	return err
}

// restoreEnd learns from a kept pidfd how a process ended of which only that is
// known.
func (p *process) restoreEnd(pidfd int) error {
	p.mu.Lock()
	lost, pid, start := p.pidfd < 0 && !p.dead, p.pid, p.start
	p.mu.Unlock()
	if !lost {
		return nil
	}
	ws, err := watch.EndOf(pid, start, pidfd)
	if err != nil {
		return fmt.Errorf("the end of process %s: %w", p, err)
	}
	p.finish(exit{Status: watch.ExitCode(ws), At: time.Now()})
	return nil
}

// restoreConsole goes on copying between a kept console and its FIFOs.
func (c *container) restoreConsole(fd int) error {
	io := &c.init.io
	io.mu.Lock()
	has := io.master != nil
	io.mu.Unlock()
	_, running, _ := c.init.status()
	if has || !c.init.terminal || !running || c.opts.Stdio == "" {
		return nil
	}
	in := ""
	if c.opts.Stdin {
		in = c.opts.Stdio + "/stdin"
	}
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	master, err := pollable(fd)
	if err != nil {
		return err
	}
	if err := io.openConsoleFIFOs(context.Background(), in, c.opts.Stdio+"/stdout"); err != nil {
		return errors.Join(err, master.Close())
	}
	io.carry(master)
	if c.log != nil {
		c.log.Running()
	}
	return nil
}
