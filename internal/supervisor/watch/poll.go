// Package watch is what the supervisor learns from the kernel of processes and
// cgroups: one epoll loop for all, and how a process ended, be it a child or
// not.
//
// Invariants: a watch is called only in the loop; the loop ends with Close.
// Concurrency: a Poller is safe for concurrent use; the functions hold no state.
package watch

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// A Poller is the one loop that waits for what the kernel tells of all
// processes and cgroups: ends of processes by pidfd, lack of memory.
type Poller struct {
	epoll int
	wake  int // an eventfd: the loop is to end
	ended chan struct{}

	mu       sync.Mutex // guards what follows; not held during a call of a watch
	next     int32
	watches  map[int32]func(events uint32)
	isClosed bool
}

// New starts the loop.
func New() (*Poller, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: 0})
	}
	if err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	p := &Poller{epoll: epoll, wake: wake, ended: make(chan struct{}), watches: map[int32]func(uint32){}}
	go p.run()
	return p, nil
}

// Add calls on, in the loop, when the descriptor has events. Several calls may
// come; with EPOLLONESHOT in events one. on must be quick.
func (p *Poller) Add(fd int, events uint32, on func(events uint32)) (token int32, err error) {
	p.mu.Lock()
	for p.next++; p.next <= 0 || p.watches[p.next] != nil; p.next++ {
		p.next = max(p.next, 0)
	}
	token = p.next
	p.watches[token] = on
	p.mu.Unlock()
	err = unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: token})
	if err != nil {
		p.mu.Lock()
		delete(p.watches, token)
		p.mu.Unlock()
		return 0, fmt.Errorf("watch descriptor %d: %w", fd, err)
	}
	return token, nil
}

// Change gives a watch other events.
func (p *Poller) Change(token int32, fd int, events uint32) error {
	return unix.EpollCtl(p.epoll, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: token})
}

// Remove ends a watch. A call of it that is under way may still go on. The
// caller closes the descriptor after it.
func (p *Poller) Remove(token int32, fd int) {
	p.mu.Lock()
	delete(p.watches, token)
	p.mu.Unlock()
	_ = unix.EpollCtl(p.epoll, unix.EPOLL_CTL_DEL, fd, nil) // it can only be gone already
}

func (p *Poller) run() {
	defer close(p.ended)
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(p.epoll, events, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			panic(fmt.Sprintf("epoll_wait: %v", err)) // only a bug of ours
		}
		for _, e := range events[:n] {
			if e.Fd == 0 {
				return
			}
			p.mu.Lock()
			on := p.watches[e.Fd]
			p.mu.Unlock()
			if on != nil {
				on(e.Events)
			}
		}
	}
}

// Close ends the loop. Closing twice is safe.
func (p *Poller) Close() {
	p.mu.Lock()
	first := !p.isClosed
	p.isClosed = true
	p.mu.Unlock()
	if !first {
		return
	}
	one := [8]byte{1}
	_, _ = unix.Write(p.wake, one[:]) // an eventfd takes it
	<-p.ended
	unix.Close(p.wake)
	unix.Close(p.epoll)
}
