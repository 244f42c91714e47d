package steps

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
)

// Flights let callers that ask for the same work at one time share one run of
// it. The run is detached from its callers: one that gives up does not stop
// work that a retry will want.
type Flights[T any] struct {
	// base ends the runs at shutdown.
	base context.Context
	log  *slog.Logger
	wg   sync.WaitGroup

	mu  sync.Mutex // guards run
	run map[string]*flight[T]
}

type flight[T any] struct {
	done  chan struct{}
	value T
	err   error
}

// NewFlights returns Flights whose runs are cancelled with base. The stack of
// one that panics goes to log.
func NewFlights[T any](base context.Context, log *slog.Logger) *Flights[T] {
	return &Flights[T]{base: base, log: log, run: map[string]*flight[T]{}}
}

// Do runs work under key, or joins the run that is under way, and waits for
// its result or for ctx, whichever comes first.
func (f *Flights[T]) Do(ctx context.Context, key string, work func(context.Context) (T, error)) (T, error) {
	f.mu.Lock()
	fl, ok := f.run[key]
	if !ok {
		fl = &flight[T]{done: make(chan struct{})}
		f.run[key] = fl
		f.wg.Add(1)
		go f.fly(key, fl, work)
	}
	f.mu.Unlock()
	select {
	case <-fl.done:
		return fl.value, fl.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("%s goes on; call again to join it: %w", key, ctx.Err())
	}
}

func (f *Flights[T]) fly(key string, fl *flight[T], work func(context.Context) (T, error)) {
	defer f.wg.Done()
	defer func() {
		f.mu.Lock()
		delete(f.run, key)
		f.mu.Unlock()
		close(fl.done)
	}()
	fl.err = Guard(f.log, func() (err error) {
		fl.value, err = work(f.base)
		return err
	}, "run", key)
}

// Wait returns when no run is under way. Callers see to it that none begins.
func (f *Flights[T]) Wait() { f.wg.Wait() }

// Slots give one holder at a time to each key. Unlike a mutex, waiting for a
// slot ends with the context, so that what hangs in one object delays that
// object alone and its callers can give up.
type Slots struct {
	mu   sync.Mutex // guards held
	held map[string]*slot
}

type slot struct {
	free chan struct{} // holds a token while nobody holds the slot
	refs int           // holder and waiters
}

// Acquire takes key's slot; release gives it back and is called once.
func (s *Slots) Acquire(ctx context.Context, key string) (release func(), err error) {
	s.mu.Lock()
	if s.held == nil {
		s.held = map[string]*slot{}
	}
	sl := s.held[key]
	if sl == nil {
		sl = &slot{free: make(chan struct{}, 1)}
		sl.free <- struct{}{}
		s.held[key] = sl
	}
	sl.refs++
	s.mu.Unlock()
	select {
	case <-sl.free:
		return func() { sl.free <- struct{}{}; s.leave(key, sl) }, nil
	case <-ctx.Done():
		s.leave(key, sl)
		return nil, fmt.Errorf("waiting for another operation on %s: %w", key, ctx.Err())
	}
}

func (s *Slots) leave(key string, sl *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sl.refs--; sl.refs == 0 {
		delete(s.held, key)
	}
}
