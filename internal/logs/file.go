package logs

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// retryAfter is how long a log file that could not be opened is left alone.
const retryAfter = time.Second

// A logFile is a container's log file, or none.
type logFile struct {
	path   string
	log    *slog.Logger
	lost   atomic.Int64 // bytes of entries that could not be written
	tell   func(int)    // of these; may be nil
	cursor *cursor      // nil where there is no log file
	left   move         // what an earlier daemon was killed at

	// mu guards what follows, and is held while a batch is written and taken
	// out of its FIFO.
	mu       sync.Mutex
	f        *os.File // nil while it cannot be opened
	dev, ino uint64
	next     time.Time // when to try to open it again
	failing  bool      // the last write failed; said once
	closed   bool
}

// openLog opens the log file and its cursor.
func openLog(o Options, fresh bool) (*logFile, error) {
	f := &logFile{path: o.LogPath, tell: o.Lost, log: o.Log.With("container", o.ID, "log", o.LogPath)}
	if o.LogPath == "" {
		return f, nil
	}
	var err error
	if f.cursor, f.left, err = openCursor(filepath.Join(o.Dir, cursorName)); err != nil {
		return nil, err
	}
	if err := f.openLocked(); err != nil {
		if fresh {
			f.cursor.f.Close()
			return nil, err
		}
		f.failed(0, err)
	}
	return f, nil
}

// wanted says that there is a log to write.
func (f *logFile) wanted() bool { return f.path != "" }

// openLocked opens the file by its path in place of the one that is open. It
// follows no symbolic link and waits for nothing that is not a plain file.
func (f *logFile) openLocked() error {
	if err := os.MkdirAll(filepath.Dir(f.path), 0o755); err != nil {
		return fmt.Errorf("make the log's directory: %w", err)
	}
	fd, err := openRetry(f.path, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o640)
	if err != nil {
		return fmt.Errorf("open log file %s: %w", f.path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return fmt.Errorf("look at log file %s: %w", f.path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return fmt.Errorf("log file %s is no plain file; remove it: %w", f.path, errdefs.ErrFailedPrecondition)
	}
	var old error
	if f.f != nil {
		old = f.f.Close()
	}
	f.f, f.dev, f.ino = os.NewFile(uintptr(fd), f.path), uint64(st.Dev), st.Ino
	return old
}

func (f *logFile) reopen() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !f.wanted():
		return nil
	case f.closed:
		return fmt.Errorf("its output has ended: %w", errdefs.ErrFailedPrecondition)
	}
	return f.openLocked()
}

// commit writes the entries in p.batch.out and takes data, which they stand
// for, out of p's FIFO. An error is one of the FIFO.
func (f *logFile) commit(p *pump, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.wanted() {
		return p.discard(len(data))
	}
	f.writeLocked(p, data)
	if err := p.discard(len(data)); err != nil {
		return err
	}
	f.cursorFailed(f.cursor.clear())
	return nil
}

// writeLocked notes the move and appends the entries. What the file does not
// take is counted and dropped.
func (f *logFile) writeLocked(p *pump, data []byte) {
	out := p.batch.out
	if f.f == nil {
		if time.Now().Before(f.next) {
			f.count(len(out))
			return
		}
		f.next = time.Now().Add(retryAfter)
		if err := f.openLocked(); err != nil {
			f.failed(len(out), err)
			return
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.f.Fd()), &st); err != nil {
		f.failed(len(out), err)
		return
	}
	f.cursorFailed(f.cursor.set(move{
		stream: p.number(),
		taken:  uint32(len(data)),
		sum:    checksum(data),
		added:  uint32(len(out)),
		dev:    f.dev,
		ino:    f.ino,
		size:   st.Size,
	}))
	n, err := f.f.Write(out)
	if err == nil {
		if f.failing {
			f.failing = false
			f.log.Warn("the log file can be written again", "lost_bytes", f.lost.Load())
		}
		return
	}
	// Entries that were written whole stay, a torn one goes.
	whole := bytes.LastIndexByte(out[:n], '\n') + 1
	if whole < n {
		err = errors.Join(err, f.f.Truncate(st.Size+int64(whole)))
	}
	f.failed(len(out)-whole, err)
}

// failed counts what was lost and says so the first time.
func (f *logFile) failed(lost int, err error) {
	f.count(lost)
	if f.failing {
		return
	}
	f.failing = true
	f.log.Error("the log file cannot be written: output is dropped until it can; make room, or the directory", "err", err)
}

// cursorFailed says that a cursor could not be written: a daemon killed now
// might write a batch twice.
func (f *logFile) cursorFailed(err error) {
	if err != nil && !f.failing {
		f.log.Error("the log's cursor cannot be written; make room in the state directory", "err", err)
	}
}

// recover finishes the move that an earlier daemon was killed at. Either its
// entries are in the file whole, then its bytes are taken out of the FIFO
// unless they were, or they are not, then the file is made as it was before.
// Whether the bytes were taken is told by their checksum.
func (f *logFile) recover(pumps []*pump) error {
	m := f.left
	f.left = move{}
	if m.stream == 0 || int(m.stream) > len(pumps) || f.f == nil {
		return nil
	}
	written, err := f.settle(m)
	if err != nil {
		return err
	}
	if written {
		if err := pumps[m.stream-1].takeAgain(m); err != nil {
			return err
		}
	}
	return f.cursor.clear()
}

// settle says whether the move's entries are in the file, and cuts off those
// that are there in part.
func (f *logFile) settle(m move) (written bool, err error) {
	if m.dev != f.dev || m.ino != f.ino {
		return false, nil // renamed meanwhile; written again rather than lost
	}
	st, err := f.f.Stat()
	switch {
	case err != nil:
		return false, err
	case st.Size() >= m.size+int64(m.added):
		return true, nil
	case st.Size() > m.size:
		return false, f.f.Truncate(m.size)
	}
	return false, nil
}

// close closes the file and the cursor; twice is safe.
func (f *logFile) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	var errs []error
	if f.f != nil {
		errs = append(errs, f.f.Close())
	}
	if f.cursor != nil {
		errs = append(errs, f.cursor.f.Close())
	}
	return errors.Join(errs...)
}

// count counts bytes of entries that are lost.
func (f *logFile) count(lost int) {
	f.lost.Add(int64(lost))
	if f.tell != nil && lost > 0 {
		f.tell(lost)
	}
}
