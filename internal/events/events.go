// Package events hands what happens to containers and sandboxes to those who
// watch.
//
// Invariant: publishing never waits. A subscriber that falls Buffer events
// behind is dropped with ErrTooSlow, so that it lists again instead of missing
// something unawares. Nothing is kept for those who come later.
//
// Concurrency: a Bus is safe for concurrent use. Events reach each subscriber
// in the order of their publishing.
package events

import (
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// Buffer is how many events a subscriber may fall behind.
const Buffer = 1024

// ErrTooSlow ends the subscription of one that does not read.
var ErrTooSlow = fmt.Errorf("the subscriber fell %d events behind; list the containers and subscribe again: %w", Buffer, errdefs.ErrResourceExhausted)

// ErrClosed ends all subscriptions when the daemon stops.
var ErrClosed = fmt.Errorf("berth is stopping: %w", errdefs.ErrUnavailable)

// A Bus carries events of one type. The zero value is ready for use.
type Bus[E any] struct {
	mu     sync.Mutex // guards subs, closed
	subs   map[*Subscription[E]]struct{}
	closed bool
}

// A Subscription receives events until it is cancelled or dropped.
type Subscription[E any] struct {
	// C is closed when the subscription ends; Err then says why.
	C   <-chan E
	c   chan E
	bus *Bus[E]
	err error // guarded by bus.mu
}

// Subscribe begins a subscription; Cancel ends it.
func (b *Bus[E]) Subscribe() *Subscription[E] {
	c := make(chan E, Buffer)
	s := &Subscription[E]{C: c, c: c, bus: b}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subs == nil {
		b.subs = map[*Subscription[E]]struct{}{}
	}
	b.subs[s] = struct{}{}
	if b.closed {
		b.dropLocked(s, ErrClosed)
	}
	return s
}

// Publish gives e to every subscriber.
func (b *Bus[E]) Publish(e E) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.subs {
		select {
		case s.c <- e:
		default:
			b.dropLocked(s, ErrTooSlow)
		}
	}
}

// Watched tells whether anybody subscribes, so that an event that is costly to
// make need not be made.
func (b *Bus[E]) Watched() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subs) > 0
}

// Close drops all subscribers. Twice is safe.
func (b *Bus[E]) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for s := range b.subs {
		b.dropLocked(s, ErrClosed)
	}
}

func (b *Bus[E]) dropLocked(s *Subscription[E], why error) {
	if _, ok := b.subs[s]; !ok {
		return
	}
	delete(b.subs, s)
	s.err = why
	close(s.c)
}

// Cancel ends the subscription. Twice is safe.
func (s *Subscription[E]) Cancel() {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	s.bus.dropLocked(s, nil)
}

// Err says why C was closed; nil after Cancel.
func (s *Subscription[E]) Err() error {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	return s.err
}
