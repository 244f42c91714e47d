package hold

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrRunning says that another process serves the state directory.
var ErrRunning = errors.New("another hold process serves this state directory")

// A Server holds FIFOs open.
type Server struct {
	// State is the state directory; required, absolute.
	State string
	// Linger is how long the server stays when it holds nothing and no client
	// is connected, for a daemon that was killed and comes back; default 5
	// seconds. After a client that took its leave it does not wait.
	Linger time.Duration
	// Ready, where set, is called once when clients can connect.
	Ready func()

	state *os.File // State; what is opened lies beneath it
	idle  chan struct{}

	mu    sync.Mutex // guards what follows
	held  map[string]*holding
	conns map[net.Conn]bool
	left  bool // the last client to come has taken its leave
	wg    sync.WaitGroup
}

// A holding is what one key holds open.
type holding struct {
	paths []string
	files []*os.File
}

// Run serves until ctx ends or there is nothing to do, then closes all it
// holds. ErrRunning: another one does already.
func (s *Server) Run(ctx context.Context) (err error) {
	if s.Linger == 0 {
		s.Linger = 5 * time.Second
	}
	s.held, s.conns = map[string]*holding{}, map[net.Conn]bool{}
	s.idle = make(chan struct{}, 1)
	if s.state, err = os.OpenFile(s.State, os.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return fmt.Errorf("open state directory: %w", err)
	}
	defer s.state.Close()
	dir, err := s.openDir()
	if err != nil {
		return err
	}
	defer dir.Close()
	locked, err := s.lock(dir)
	if err != nil {
		return err
	}
	defer locked.Close()
	listener, err := listen(dir)
	if err != nil {
		return err
	}
	if s.Ready != nil {
		s.Ready()
	}
	return s.serve(ctx, dir, listener)
}

// openDir opens the directory of the socket, which is the owner's alone.
func (s *Server) openDir() (*os.File, error) {
	path := filepath.Join(s.State, Dir)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := dir.Chmod(0o700); err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

func (s *Server) lock(dir *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), lock, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	f := os.NewFile(uintptr(fd), lock)
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrRunning
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	return f, nil
}

// Address is the socket's address through an open directory: the path of a
// socket may have 107 bytes only. It is good while dir is open.
func Address(dir *os.File) *net.UnixAddr {
	return &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), Socket)}
}

func listen(dir *os.File) (*net.UnixListener, error) {
	// The lock is ours, so what is there was left by a dead server.
	if err := unlink(dir); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", Address(dir))
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(Address(dir).Name, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func unlink(dir *os.File) error {
	if err := unix.Unlinkat(int(dir.Fd()), Socket, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove socket: %w", err)
	}
	return nil
}

func (s *Server) serve(ctx context.Context, dir *os.File, l *net.UnixListener) error {
	accepted := make(chan error, 1)
	go func() { accepted <- s.accept(l) }()
	s.nudge()
	linger := time.NewTimer(s.Linger)
	defer linger.Stop()
	var failed error
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case failed = <-accepted:
			accepted, running = nil, false
		case <-s.idle:
			running = !s.done()
			linger.Reset(s.Linger)
		case <-linger.C:
			running = s.busy()
		}
	}
	// A client that connects now is cut off and starts another server.
	errs := []error{failed, unlink(dir), l.Close()}
	if accepted != nil {
		<-accepted
	}
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	for _, h := range s.held {
		errs = append(errs, h.close())
	}
	return errors.Join(errs...)
}

// nudge lets serve look anew whether there is something to do.
func (s *Server) nudge() {
	select {
	case s.idle <- struct{}{}:
	default:
	}
}

// done tells whether the last client has taken its leave, has gone, and left
// nothing to hold.
func (s *Server) done() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left && len(s.held) == 0 && len(s.conns) == 0
}

func (s *Server) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held) > 0 || len(s.conns) > 0
}

// accept returns nil once the listener is closed.
func (s *Server) accept(l *net.UnixListener) error {
	for {
		c, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			time.Sleep(100 * time.Millisecond) // the connection waits
			continue
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		s.mu.Lock()
		s.conns[c], s.left = true, false
		s.mu.Unlock()
		s.wg.Add(1)
		go s.converse(c)
	}
}

func (s *Server) converse(c *net.UnixConn) {
	defer s.wg.Done()
	defer func() {
		c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		s.nudge()
	}()
	in, out := bufio.NewReaderSize(c, 4<<10), json.NewEncoder(c)
	var long []byte
	for {
		line, err := readLine(in, &long)
		if err == io.EOF || errors.Is(err, net.ErrClosed) {
			return
		}
		res := Response{Version: Version, OK: true}
		if err == nil {
			err = s.do(line, &res)
		}
		if err != nil {
			res = Response{Version: Version, Error: err.Error()}
		}
		if out.Encode(res) != nil || len(line) == 0 {
			return
		}
	}
}

// readLine reads a line of at most MaxLine bytes. An error other than io.EOF
// is worth telling the client; the connection cannot be used after it.
func readLine(in *bufio.Reader, long *[]byte) ([]byte, error) {
	*long = (*long)[:0]
	for {
		part, err := in.ReadSlice('\n')
		*long = append(*long, part...)
		switch {
		case len(*long) > MaxLine:
			return nil, fmt.Errorf("request is longer than %d bytes", MaxLine)
		case err == nil:
			return *long, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, io.EOF
		}
	}
}

func (s *Server) do(line []byte, res *Response) error {
	var req Request
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return fmt.Errorf("request is not understood: %v", err)
	}
	if req.Version != Version {
		return fmt.Errorf("request has version %d, this process knows %d", req.Version, Version)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch req.Op {
	case OpKeep:
		return s.keepLocked(req)
	case OpRelease:
		h := s.held[req.Key]
		delete(s.held, req.Key)
		return h.close()
	case OpLeave:
		s.left = true
		return nil
	case OpKeys:
		res.PID, res.Keys = os.Getpid(), map[string][]string{}
		for key, h := range s.held {
			res.Keys[key] = h.paths
		}
		return nil
	}
	return fmt.Errorf("operation %q is unknown", req.Op)
}

// keepLocked opens the paths before it closes what the key held: the same FIFO
// is never left unheld.
func (s *Server) keepLocked(req Request) error {
	if req.Key == "" || len(req.Key) > MaxKey || len(req.Paths) == 0 || len(req.Paths) > MaxPaths {
		return fmt.Errorf("keep wants a key of at most %d bytes and 1 to %d paths", MaxKey, MaxPaths)
	}
	h := &holding{paths: req.Paths}
	for _, path := range req.Paths {
		f, err := s.open(path)
		if err != nil {
			return errors.Join(fmt.Errorf("keep %s: %w", path, err), h.close())
		}
		h.files = append(h.files, f)
	}
	old := s.held[req.Key]
	s.held[req.Key] = h
	return old.close()
}

// open opens a FIFO beneath the state directory, through no symbolic link, and
// without waiting for a writer.
func (s *Server) open(path string) (*os.File, error) {
	fd, err := unix.Openat2(int(s.state.Fd()), path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		unix.Close(fd)
		return nil, errors.Join(err, errors.New("not a FIFO"))
	}
	// In blocking mode from here on, so that the runtime does not poll it.
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func (h *holding) close() error {
	if h == nil {
		return nil
	}
	var errs []error
	for _, f := range h.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
