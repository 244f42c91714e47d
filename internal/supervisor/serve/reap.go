package serve

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reapAgain is how long after a look that could not be finished the next is.
const reapAgain = 200 * time.Millisecond

// forking runs what may have children of its own that it waits for itself:
// libcontainer's first stages and hooks. Meanwhile no orphan is reaped, for
// those children look like orphans.
func (s *Server) forking(do func() error) error {
	s.forks.RLock()
	defer s.forks.RUnlock()
	return do()
}

// reapOrphans takes note of the ends of processes that became children of this
// one, the subreaper, because their parents ended: those of containers in the
// host's PID namespace. Our own processes are waited for by their pidfds, so
// a signal that is lost or comes early harms none of them.
func (s *Server) reapOrphans(ctx context.Context) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	defer signal.Stop(signals)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		case <-timer.C:
		}
		// Not at once: our own ends come in a moment, by their pidfds.
		select {
		case <-ctx.Done():
			return
		case <-time.After(reapAgain / 10):
		}
		if !s.reapOnce() {
			timer.Reset(reapAgain)
		}
	}
}

// reapOnce says false where something is left to look at again.
func (s *Server) reapOnce() bool {
	if !s.forks.TryLock() {
		return false
	}
	defer s.forks.Unlock()
	for {
		pid, err := anyZombie()
		if err != nil || pid == 0 {
			return true
		}
		if s.isOurs(pid) {
			return false // its pidfd has told, or will
		}
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, unix.WNOHANG, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return true
		}
	}
}

// anyZombie is a child that has ended and was not waited for, 0 for none.
func anyZombie() (int, error) {
	var info struct {
		signo, errno, code int32
		_                  int32
		pid                int32
		_                  [27]int32 // siginfo_t has 128 bytes
	}
	for {
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, 0, 0)
		switch errno {
		case 0:
			return int(info.pid), nil
		case syscall.EINTR:
			continue
		}
		return 0, errno
	}
}

// isOurs tells whether a process is one that its own watch reaps.
func (s *Server) isOurs(pid int) bool {
	s.mu.Lock()
	list := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		list = append(list, c)
	}
	s.mu.Unlock()
	for _, c := range list {
		for _, p := range c.processes() {
			p.mu.Lock()
			ours := p.pid == pid && p.lib != nil && !p.dead
			p.mu.Unlock()
			if ours {
				return true
			}
		}
	}
	return false
}

// processes are the init and what was executed.
func (c *container) processes() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]*process, 0, 1+len(c.execs))
	if c.init != nil {
		list = append(list, c.init)
	}
	for _, p := range c.execs {
		list = append(list, p)
	}
	return list
}
