package logs

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// batchSize is the most that is taken from a FIFO at once: what a FIFO holds
// by default. FIFOs are not made larger: the kernel counts their pages per
// user, and beyond 64 MiB it gives containers that run as root without
// CAP_SYS_ADMIN pipes of two pages.
const batchSize = 64 << 10

// makeFIFO makes the FIFO at path, or finds it there.
func makeFIFO(path string) (made bool, err error) {
	err = unix.Mkfifo(path, 0o600)
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("make FIFO %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return false, fmt.Errorf("look at FIFO %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return false, fmt.Errorf("%s is in the place of a FIFO; remove it: %w", path, errdefs.ErrFailedPrecondition)
	}
	return false, nil
}

// openFIFO opens without waiting for the other side. The file uses Go's
// poller.
func openFIFO(path string, flags int) (*os.File, error) {
	fd, err := openRetry(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open FIFO %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func openRetry(path string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Open(path, flags, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// available is how many bytes the FIFO holds.
func available(fd int) (int, error) { return unix.IoctlGetInt(fd, unix.TIOCINQ) }

// hungUp says that a FIFO that had writers has none. It holds for a read end
// that was open while a writer was.
func hungUp(fd int) (bool, error) {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			return p[0].Revents&unix.POLLHUP != 0, err
		}
	}
}

// A batch is what it takes to move output: buffers, and a pipe to look at a
// FIFO's content through. Batches are shared by all containers and taken only
// while there is output to move.
type batch struct {
	r, w int // a pipe, empty between calls
	null int // /dev/null
	in   []byte
	out  []byte
}

var batches = sync.Pool{}

func takeBatch() (*batch, error) {
	if b, ok := batches.Get().(*batch); ok {
		return b, nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	null, err := openRetry(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, fmt.Errorf("open %s: %w", os.DevNull, err)
	}
	b := &batch{r: fds[0], w: fds[1], null: null, in: make([]byte, batchSize)}
	runtime.AddCleanup(b, func(fds [3]int) {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}, [3]int{fds[0], fds[1], null})
	return b, nil
}

func (b *batch) give() {
	if cap(b.out) > 8*batchSize { // many empty lines
		b.out = nil
	}
	batches.Put(b)
}

// peek copies the FIFO's first bytes, at most limit, into b.in and leaves them
// in the FIFO.
func (b *batch) peek(fd, limit int) (int, error) {
	n, err := retry(func() (int64, error) {
		return unix.Tee(fd, b.w, min(limit, len(b.in)), unix.SPLICE_F_NONBLOCK)
	})
	if err != nil {
		return 0, fmt.Errorf("tee: %w", err)
	}
	for got := 0; got < int(n); {
		m, err := retry(func() (int64, error) {
			m, err := unix.Read(b.r, b.in[got:n])
			return int64(m), err
		})
		if err != nil {
			return 0, fmt.Errorf("read what was teed: %w", err)
		}
		got += int(m)
	}
	return int(n), nil
}

// discard takes n bytes out of the FIFO, without a copy.
func (b *batch) discard(fd, n int) error {
	for n > 0 {
		m, err := retry(func() (int64, error) {
			return unix.Splice(fd, nil, b.null, nil, n, unix.SPLICE_F_NONBLOCK)
		})
		if err != nil {
			return fmt.Errorf("take %d bytes that were written: %w", n, err)
		}
		if m == 0 {
			return fmt.Errorf("take %d bytes that were written: someone else took them", n)
		}
		n -= int(m)
	}
	return nil
}

func retry(call func() (int64, error)) (int64, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}
