package record

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	// ballastSize is what the store gives up when the disk is full, logReserve
	// and fileReserve what of it the log and the database take at once, before
	// what filled the disk does.
	ballastSize = 4 << 20
	logReserve  = 2 << 20
	fileReserve = 1 << 20
	// ballastRoom times its size must be free for a ballast to be made.
	ballastRoom = 2
)

// A ballast is a file beside the database that only takes room. On a full disk
// it is given up, so that pods can be stopped and removed, which frees room.
type ballast struct {
	path string
	log  *slog.Logger
	held atomic.Bool
	// given says that it was given up and not made again.
	given atomic.Bool
	// never: the file system cannot allocate. Only restore uses it.
	never bool
}

func newBallast(path string, log *slog.Logger) *ballast {
	b := &ballast{path: path, log: log}
	_, err := os.Lstat(path)
	b.held.Store(err == nil)
	return b
}

// release gives the room up; false where there is none to give.
func (b *ballast) release() bool {
	if !b.held.Swap(false) {
		return false
	}
	if err := os.Remove(b.path); err != nil {
		b.log.Error("the disk is full, and the record store's ballast cannot be removed", "file", b.path, "err", err)
		return false
	}
	b.given.Store(true)
	b.log.Error("the disk is full: the record store gives up its ballast, so that pods can be stopped and removed; free some room",
		"file", b.path, "bytes", ballastSize)
	return true
}

// restore makes the ballast again where there is room. Without one the store
// works as well, until the disk is full. One goroutine at a time calls it.
func (b *ballast) restore() {
	if b.never || b.held.Load() {
		return
	}
	if err := b.make(); err != nil {
		b.never = errors.Is(err, unix.EOPNOTSUPP)
		b.log.Warn("the record store has no ballast, which it would need to stop pods on a full disk", "file", b.path, "err", err)
	}
}

func (b *ballast) make() error {
	file, err := os.OpenFile(b.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = fill(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, os.Remove(b.path))
	}
	b.held.Store(true)
	b.given.Store(false)
	return nil
}

func fill(file *os.File) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &fs); err != nil {
		return err
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < ballastRoom*ballastSize {
		return fmt.Errorf("only %d bytes are free: %w", free, unix.ENOSPC)
	}
	return unix.Fallocate(int(file.Fd()), 0, 0, ballastSize)
}

// makeRoom gives up the ballast and copies the log into the database, so that
// it is written from its beginning and takes no more. What fails here, the
// change that is tried again tells.
func (s *Store) makeRoom() {
	gave := s.ballast.release()
	if s.side == nil { // not open yet
		return
	}
	var errs []error
	if gave {
		errs = append(errs, reserve(s.file, fileReserve), s.reserveLog())
	}
	_, _, err := s.copyBeside()
	if err = errors.Join(append(errs, err)...); err != nil {
		s.log.Warn("the record store finds little room", "file", s.path, "err", err)
	}
}

func (s *Store) reserveLog() error {
	file, err := os.OpenFile(s.path+"-wal", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(reserve(file, logReserve), file.Close())
}

// reserve allocates blocks beyond the file's end and leaves its size.
func reserve(file *os.File, size int64) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	return unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_KEEP_SIZE, info.Size(), size)
}

// withRoom runs a change, and once more, with room made, when the disk is full.
// The caller sees to it that no other change is under way.
func (s *Store) withRoom(change func() error) error {
	err := change()
	if !full(err) {
		return err
	}
	s.makeRoom()
	s.wantCheckpoint() // which makes the ballast again
	if err = change(); full(err) {
		return fmt.Errorf("the file system of %s is full; free some room on it: %w: %w", s.path, err, errdefs.ErrResourceExhausted)
	}
	return err
}

func full(err error) bool {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return true
	}
	var e *sqlite.Error
	// The second is how SQLite says that its index of the log found no room.
	return errors.As(err, &e) && (e.Code() == sqlite3.SQLITE_FULL || e.Code() == sqlite3.SQLITE_IOERR_SHMSIZE)
}
