package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"berth/internal/supervisor/hold"
)

const (
	// callTimeout bounds one request, the start of the process included.
	callTimeout = 5 * time.Second
	// restartWait is how long after a failed start the next one is tried; it
	// doubles up to restartMax.
	restartWait = 200 * time.Millisecond
	restartMax  = 30 * time.Second
)

// HoldOptions configure a Hold. All fields are required.
type HoldOptions struct {
	// Binary is the program containerd-shim-berth-v1.
	Binary string
	// State is the daemon's state directory, absolute.
	State string
	Log   *slog.Logger
}

// A Hold is the client of a hold process.
type Hold struct {
	opts   HoldOptions
	reaper *Reaper
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	lost   chan struct{} // has a token when the connection may be gone

	mu     sync.Mutex // guards what follows; held across a request
	keys   map[string][]string
	conn   *conn // nil: none
	failed error // of the last start; nil while there is a connection
	next   time.Time
	wait   time.Duration
}

// OpenHold connects to the hold process of the state directory, where one runs.
// What it holds already it goes on holding. One is started when there is
// something to keep: a daemon whose containers supervisors have needs none. If
// the process dies it is started again and told again what to keep.
//
// A process that cannot be started is no error here: it is logged and tried
// again, so that the daemon works without; Keep tells.
func OpenHold(ctx context.Context, o HoldOptions) (*Hold, error) {
	if o.Binary == "" || !filepath.IsAbs(o.State) || o.Log == nil {
		return nil, fmt.Errorf("open hold: Binary %q, an absolute State %q and Log are required: %w", o.Binary, o.State, errdefs.ErrInvalidArgument)
	}
	h := &Hold{opts: o, reaper: NewReaper(o.Log), keys: map[string][]string{}, lost: make(chan struct{}, 1)}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.mu.Lock()
	if h.mayRunLocked() {
		h.connectLocked()
	}
	h.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	h.wg.Add(1)
	go h.restore()
	return h, nil
}

// Keep has the process keep the FIFOs at the paths open, all of them below the
// state directory, in place of what it kept under key. When Keep returns nil
// they are open.
//
// Errors: ErrInvalidArgument, ErrNotFound where a FIFO is missing,
// ErrUnavailable where there is no process: then they are kept as soon as there
// is one, and the caller may go on; only what a container writes last while
// the daemon is down can be lost.
func (h *Hold) Keep(ctx context.Context, key string, paths ...string) error {
	var rel []string
	for _, path := range paths {
		r, err := filepath.Rel(h.opts.State, path)
		if err != nil || r == ".." || strings.HasPrefix(r, "../") {
			return fmt.Errorf("hold of %s: %s is not below %s: %w", key, path, h.opts.State, errdefs.ErrInvalidArgument)
		}
		rel = append(rel, r)
	}
	if key == "" || len(key) > hold.MaxKey || len(rel) == 0 || len(rel) > hold.MaxPaths {
		return fmt.Errorf("hold of %q: a key of at most %d bytes and 1 to %d paths are wanted: %w", key, hold.MaxKey, hold.MaxPaths, errdefs.ErrInvalidArgument)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.callLocked(ctx, hold.Request{Op: hold.OpKeep, Key: key, Paths: rel})
	if err == nil || errdefs.IsUnavailable(err) {
		h.keys[key] = rel
	}
	return err
}

// Release has the process close what it keeps under key; a key that it does
// not know is no error. Without a process there is nothing to close.
func (h *Hold) Release(ctx context.Context, key string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.keys, key)
	if len(h.keys) == 0 && !h.mayRunLocked() {
		return nil
	}
	_, err := h.callLocked(ctx, hold.Request{Op: hold.OpRelease, Key: key})
	if errdefs.IsUnavailable(err) && h.ctx.Err() == nil {
		return nil
	}
	return err
}

// Keys are those that the process keeps something under, in order.
func (h *Hold) Keys(ctx context.Context) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	res, err := h.callLocked(ctx, hold.Request{Op: hold.OpKeys})
	if err != nil {
		return nil, err
	}
	keys := make([]string, 0, len(res.Keys))
	for key := range res.Keys {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys, nil
}

// PID is the process's number.
func (h *Hold) PID(ctx context.Context) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	res, err := h.callLocked(ctx, hold.Request{Op: hold.OpKeys})
	return res.PID, err
}

// Close ends the connection and all goroutines. The process stays while it
// holds something. Closing twice is safe.
func (h *Hold) Close() error {
	h.cancel()
	h.mu.Lock()
	if h.conn != nil {
		h.conn.close()
		h.conn = nil
	}
	h.mu.Unlock()
	h.wg.Wait()
	h.reaper.Close()
	return nil
}

// mayRunLocked says that there is a process, as far as is known.
func (h *Hold) mayRunLocked() bool {
	if h.conn != nil {
		return true
	}
	_, err := os.Lstat(filepath.Join(h.opts.State, hold.Dir, hold.Socket))
	return err == nil
}

// callLocked makes a request, over a new connection if the old one has broken.
func (h *Hold) callLocked(ctx context.Context, req hold.Request) (hold.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if h.conn != nil {
		res, err := h.conn.call(ctx, req)
		if !errors.Is(err, errBroken) {
			return res, err
		}
		h.dropLocked()
	}
	if time.Now().Before(h.next) {
		return hold.Response{}, h.failed
	}
	if err := ctx.Err(); err != nil {
		return hold.Response{}, h.unavailable(err) // it was the caller, not the process
	}
	if err := h.connectLocked(); err != nil {
		return hold.Response{}, err
	}
	res, err := h.conn.call(ctx, req)
	if errors.Is(err, errBroken) {
		h.dropLocked()
		err = h.unavailable(err)
	}
	return res, err
}

func (h *Hold) dropLocked() {
	if h.conn != nil {
		h.conn.close()
		h.conn = nil
		h.nudge()
	}
}

// connectLocked finds or starts the process, tells it what to keep and learns
// what it keeps already.
func (h *Hold) connectLocked() error {
	if h.ctx.Err() != nil {
		return h.unavailable(errors.New("closed"))
	}
	ctx, cancel := context.WithTimeout(h.ctx, callTimeout)
	defer cancel()
	c, err := h.dial(ctx)
	if err == nil {
		if err = h.syncLocked(ctx, c); err != nil {
			c.close()
		}
	}
	if err != nil {
		if h.failed == nil {
			h.wait = restartWait
			h.opts.Log.Warn("no hold process: what containers write last while the daemon is down is lost; it is tried again", "err", err)
		} else {
			h.wait = min(2*h.wait, restartMax)
		}
		h.failed, h.next = h.unavailable(err), time.Now().Add(h.wait)
		h.nudge()
		return h.failed
	}
	h.conn, h.failed, h.next = c, nil, time.Time{}
	return nil
}

func (h *Hold) unavailable(err error) error {
	return fmt.Errorf("hold process of %s: %w: %w", h.opts.State, err, errdefs.ErrUnavailable)
}

// syncLocked makes both sides know the same keys. A FIFO that is gone is
// forgotten.
func (h *Hold) syncLocked(ctx context.Context, c *conn) error {
	res, err := c.call(ctx, hold.Request{Op: hold.OpKeys})
	if err != nil {
		return err
	}
	for key, paths := range h.keys {
		if slices.Equal(res.Keys[key], paths) {
			continue
		}
		_, err := c.call(ctx, hold.Request{Op: hold.OpKeep, Key: key, Paths: paths})
		if errors.Is(err, errBroken) {
			return err
		}
		if err != nil {
			h.opts.Log.Warn("output is not held any more", "key", key, "err", err)
			delete(h.keys, key)
		}
	}
	for key, paths := range res.Keys {
		if h.keys[key] == nil {
			h.keys[key] = paths
		}
	}
	return nil
}

func (h *Hold) nudge() {
	select {
	case h.lost <- struct{}{}:
	default:
	}
}

// restore connects again when the connection breaks, until Close.
func (h *Hold) restore() {
	defer h.wg.Done()
	for {
		var timer <-chan time.Time
		var broken <-chan struct{}
		h.mu.Lock()
		if h.conn != nil {
			broken = h.conn.broken
		} else if len(h.keys) > 0 || h.failed != nil {
			timer = time.After(time.Until(h.next))
		}
		h.mu.Unlock()
		select {
		case <-h.ctx.Done():
			return
		case <-h.lost:
			continue
		case <-broken:
			h.opts.Log.Warn("the hold process ended; it is started again")
		case <-timer:
		}
		h.mu.Lock()
		if h.conn != nil && h.conn.isBroken() {
			h.conn.close()
			h.conn = nil
		}
		if h.conn == nil && h.ctx.Err() == nil {
			if h.connectLocked() == nil {
				h.opts.Log.Info("the hold process runs", "keys", len(h.keys))
			}
		}
		h.mu.Unlock()
	}
}
