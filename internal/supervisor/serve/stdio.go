package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth/internal/supervisor/wire"
)

// openTimeout bounds the wait for a client to open its end of a FIFO.
const openTimeout = 10 * time.Second

// A stdio is what a process is connected to.
type stdio struct {
	in, out, err *os.File // the process's own ends; closed once it has them
	socket       *os.File // where its console is sent, our end and its
	theirSocket  *os.File
	outFIFO      *os.File // of a console: where its output goes
	inFIFO       *os.File // and its input comes from
	copies       sync.WaitGroup

	mu     sync.Mutex // guards what follows
	stdin  *os.File   // a write end, so that the end of input is ours to say
	held   []*os.File // read ends, so that no writer is killed by a client that goes
	master *os.File
	noMore bool // stdin was closed
}

// fifoPath is the path that a request names, plain or as a fifo:// URL.
func fifoPath(s string) (string, error) {
	path := strings.TrimPrefix(s, "fifo://")
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("stdio %q: only the path of a FIFO is understood: %w", s, errdefs.ErrInvalidArgument)
	}
	return path, nil
}

// openFIFO opens a FIFO and nothing else. With O_NONBLOCK among the flags the
// file uses Go's poller.
func openFIFO(path string, flags int) (*os.File, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open FIFO %s: %w", path, err)
		}
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFIFO {
			err = fmt.Errorf("%s is no FIFO: %w", path, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			unix.Close(fd)
			return nil, err
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// openForProcess opens a FIFO without waiting, for a process that wants
// blocking descriptors.
func openForProcess(path string, flags int) (*os.File, error) {
	f, err := openFIFO(path, flags|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	// Fd makes it blocking; the file is not used by us.
	if err := unix.SetNonblock(int(f.Fd()), false); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// openOutput opens the write end of a client's FIFO, and waits for the client:
// one that opened it after the process has ended would wait for ever.
func openOutput(ctx context.Context, path string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		if f, err := openFIFO(path, unix.O_RDONLY|unix.O_NONBLOCK); err == nil { // lets the open below end
			_ = f.Close()
		}
	})
	f, err := openFIFO(path, unix.O_WRONLY)
	if !stop() && err == nil {
		return nil, errors.Join(fmt.Errorf("nobody reads FIFO %s: %w", path, errdefs.ErrFailedPrecondition), f.Close())
	}
	return f, err
}

// openClient connects a process to FIFOs of a client, as runc's shim does. The
// process gets the FIFOs themselves.
func (s *stdio) openClient(ctx context.Context, p *process, uid, gid int) (err error) {
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if p.terminal {
		return s.openConsole(ctx, p.stdin, p.stdout)
	}
	if p.stdin != "" {
		if err := s.openInput(p.stdin); err != nil {
			return err
		}
	}
	for _, o := range []struct {
		name string
		file **os.File
	}{{p.stdout, &s.out}, {p.stderr, &s.err}} {
		if o.name == "" {
			continue
		}
		path, err := fifoPath(o.name)
		if err != nil {
			return err
		}
		if *o.file, err = openOutput(ctx, path); err != nil {
			return err
		}
		reader, err := openFIFO(path, unix.O_RDONLY|unix.O_NONBLOCK)
		if err != nil {
			return err
		}
		s.held = append(s.held, reader)
	}
	return s.chown(uid, gid)
}

// openInput opens both ends of the FIFO that the process reads.
func (s *stdio) openInput(name string) error {
	path, err := fifoPath(name)
	if err != nil {
		return err
	}
	if s.in, err = openForProcess(path, unix.O_RDONLY); err != nil {
		return err
	}
	s.stdin, err = openFIFO(path, unix.O_WRONLY|unix.O_NONBLOCK)
	return err
}

// chown gives the process's ends to the container's root, as a pipe would be.
func (s *stdio) chown(uid, gid int) error {
	for _, f := range []*os.File{s.in, s.out, s.err} {
		if f == nil || uid == 0 && gid == 0 {
			continue
		}
		if err := f.Chown(uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// openOwn connects a container's init to the FIFOs in dir. It has its output
// open for reading too, so that no write fails when nobody else reads.
func (s *stdio) openOwn(dir string, stdin, terminal bool, uid, gid int) (err error) {
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	in, out, errs := filepath.Join(dir, "stdin"), filepath.Join(dir, "stdout"), filepath.Join(dir, "stderr")
	if terminal {
		if !stdin {
			in = ""
		}
		return s.openConsole(context.Background(), in, out)
	}
	if stdin {
		if err := s.openInput(in); err != nil {
			return err
		}
	}
	if s.out, err = openForProcess(out, unix.O_RDWR); err != nil {
		return err
	}
	if s.err, err = openForProcess(errs, unix.O_RDWR); err != nil {
		return err
	}
	return s.chown(uid, gid)
}

// openConsole prepares for a console whose output goes to one FIFO and whose
// input comes from another.
func (s *stdio) openConsole(ctx context.Context, in, out string) error {
	if err := s.openConsoleFIFOs(ctx, in, out); err != nil {
		return err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("console socket: %w", err)
	}
	s.socket, s.theirSocket = os.NewFile(uintptr(fds[0]), "console"), os.NewFile(uintptr(fds[1]), "console")
	return nil
}

func (s *stdio) openConsoleFIFOs(ctx context.Context, in, out string) error {
	if out != "" {
		path, err := fifoPath(out)
		if err != nil {
			return err
		}
		waited, err := openOutput(ctx, path)
		if err != nil {
			return err
		}
		// Once more, for Go's poller.
		s.outFIFO, err = openFIFO(path, unix.O_WRONLY|unix.O_NONBLOCK)
		if err = errors.Join(err, waited.Close()); err != nil {
			return err
		}
	}
	if in != "" {
		path, err := fifoPath(in)
		if err != nil {
			return err
		}
		// For writing too: clients come and go.
		if s.inFIFO, err = openFIFO(path, unix.O_RDWR|unix.O_NONBLOCK); err != nil {
			return err
		}
	}
	return nil
}

// given closes the process's ends, which it has now, and takes its console.
func (s *stdio) given() error {
	s.closeTheirs()
	if s.socket == nil {
		return nil
	}
	master, err := receiveFile(s.socket)
	if err = errors.Join(err, s.socket.Close()); err != nil {
		return fmt.Errorf("receive the console: %w", err)
	}
	s.socket = nil
	s.carry(master)
	return nil
}

// carry copies between a console and its FIFOs until it is closed.
func (s *stdio) carry(master *os.File) {
	s.mu.Lock()
	s.master = master
	s.mu.Unlock()
	s.copies.Go(func() {
		if s.outFIFO != nil {
			_, _ = io.Copy(struct{ io.Writer }{s.outFIFO}, struct{ io.Reader }{master}) // ends with EIO: the console is hung up
			_ = s.outFIFO.Close()
		}
	})
	if s.inFIFO != nil {
		s.copies.Go(func() {
			_, _ = io.Copy(struct{ io.Writer }{master}, struct{ io.Reader }{s.inFIFO}) // ends with close
		})
	}
}

func receiveFile(socket *os.File) (*os.File, error) {
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(socket.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	fds, err := wire.Descriptors(oob[:oobn])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(err, fmt.Errorf("%d descriptors and %d bytes came", len(fds), n), wire.Close(fds))
	}
	return pollable(fds[0])
}

// pollable is a descriptor as a file for Go's poller.
func pollable(fd int) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "console"), nil
}

// resize gives the console a size.
func (s *stdio) resize(width, height uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.master == nil {
		return fmt.Errorf("there is no console: %w", errdefs.ErrFailedPrecondition)
	}
	raw, err := s.master.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(height), Col: uint16(width)})
	})
	return errors.Join(err, failed)
}

// closeStdin ends the process's input.
func (s *stdio) closeStdin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noMore = true
	if s.stdin == nil {
		return nil
	}
	err := s.stdin.Close()
	s.stdin = nil
	return err
}

func (s *stdio) closeTheirs() {
	for _, f := range []**os.File{&s.in, &s.out, &s.err, &s.theirSocket} {
		if *f != nil {
			_ = (*f).Close() // nothing was written
			*f = nil
		}
	}
}

// drained waits until a console's output is in its FIFO, but not for long: a
// process that was left in the background may hold the console open.
func (s *stdio) drained(limit time.Duration) {
	done := make(chan struct{})
	go func() { // ends at the latest with close
		s.copies.Wait()
		close(done)
	}()
	if s.inFIFO != nil {
		_ = s.inFIFO.Close()
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// close closes everything and waits for what copies. Closing twice is safe.
func (s *stdio) close() {
	s.closeTheirs()
	s.mu.Lock()
	files := append(s.held, s.stdin, s.master, s.socket)
	s.held, s.stdin, s.master, s.socket = nil, nil, nil, nil
	s.mu.Unlock()
	for _, f := range append(files, s.outFIFO, s.inFIFO) {
		if f != nil {
			_ = f.Close() // what was written is with the kernel; twice is safe
		}
	}
	s.copies.Wait()
}
