package supervisor

import (
	"context"
	"log/slog"
	"os/exec"
	"sync"

	"berth/internal/host"
)

// A Reaper takes note of the ends of the processes that this package starts,
// so that none stays a zombie while its parent, the daemon, runs. What outlives
// the daemon is reaped by the system's init.
type Reaper struct {
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex // guards closed, and wg against Add after Wait
	closed bool
	wg     sync.WaitGroup
}

// NewReaper returns a Reaper. log is required.
func NewReaper(log *slog.Logger) *Reaper {
	ctx, cancel := context.WithCancel(context.Background())
	return &Reaper{log: log, ctx: ctx, cancel: cancel}
}

// watch reaps cmd, which runs as p, when it ends, and says so by closing done.
// The end of the Reaper closes it too.
func (r *Reaper) watch(cmd *exec.Cmd, p host.Process, what string) (done <-chan struct{}) {
	c := make(chan struct{})
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		close(c)
		return c
	}
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		defer close(c)
		// Wait for the end without reaping first: that can be cut short.
		if err := p.Wait(r.ctx); err != nil {
			if r.ctx.Err() == nil {
				r.log.Error("the end of a process cannot be waited for", "process", what, "pid", p.PID, "err", err)
			}
			cmd.Process.Release()
			return
		}
		err := cmd.Wait()
		r.log.Debug("process ended", "process", what, "pid", p.PID, "err", err)
	}()
	return c
}

// Close stops the watching, not the processes, and waits for it. Closing twice
// is safe.
func (r *Reaper) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
}
