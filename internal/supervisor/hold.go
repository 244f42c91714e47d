package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
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
	// callTimeout bounds one request to the process, and its start.
	callTimeout = 5 * time.Second
	// keepTime is how long Keep and Release wait for the process; then it is
	// told later.
	keepTime = 500 * time.Millisecond
	// askTime is how long Keys and PID wait: for requests under way, too.
	askTime = 3 * callTimeout
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

// A Hold is the client of a hold process. One goroutine owns the connection and
// makes all requests, in the order in which they were asked for.
type Hold struct {
	opts   HoldOptions
	reaper *Reaper
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{} // has a token when there may be requests

	mu    sync.Mutex // guards what follows; held across nothing
	queue []*request
	keys  map[string][]string // to be kept
	// released are the keys of which the process may not have heard yet that
	// they are.
	released map[string]bool

	// The goroutine's own.
	conn   *conn // nil: none
	failed error // of the last start; nil while there is a connection
	next   time.Time
	wait   time.Duration
}

// A request is made even when its caller has given up.
type request struct {
	hold.Request
	done chan response // has room for the one
}

type response struct {
	hold.Response
	err error
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
	h := &Hold{
		opts: o, reaper: NewReaper(o.Log), wake: make(chan struct{}, 1),
		keys: map[string][]string{}, released: map[string]bool{},
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	if h.mayRun() {
		_ = h.connect() // logged, and tried again
	}
	h.wg.Add(1)
	go h.run()
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// Keep has the process keep the FIFOs at the paths open, all of them below the
// state directory, in place of what it kept under key. When Keep returns nil
// they are open.
//
// Errors: ErrInvalidArgument, ErrNotFound where a FIFO is missing,
// ErrUnavailable where there is no process, or it does not answer soon: then
// they are kept as soon as it does, and the caller may go on; only what a
// container writes last while the daemon is down can be lost.
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
	_, err := h.ask(ctx, keepTime, hold.Request{Op: hold.OpKeep, Key: key, Paths: rel}, func() {
		h.keys[key] = rel
		delete(h.released, key)
	})
	return err
}

// Release has the process close what it keeps under key; a key that it does
// not know is no error. A process that does not answer soon, or is not there,
// closes it when it does.
func (h *Hold) Release(ctx context.Context, key string) error {
	h.mu.Lock()
	none := len(h.keys) == 0
	h.mu.Unlock()
	if none && !h.mayRun() {
		return nil
	}
	_, err := h.ask(ctx, keepTime, hold.Request{Op: hold.OpRelease, Key: key}, func() {
		delete(h.keys, key)
		h.released[key] = true
	})
	if errdefs.IsUnavailable(err) && h.ctx.Err() == nil {
		return nil
	}
	return err
}

// Keys are those that the process keeps something under, in order.
func (h *Hold) Keys(ctx context.Context) ([]string, error) {
	res, err := h.ask(ctx, askTime, hold.Request{Op: hold.OpKeys}, nil)
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(res.Keys)), nil
}

// PID is the process's number.
func (h *Hold) PID(ctx context.Context) (int, error) {
	res, err := h.ask(ctx, askTime, hold.Request{Op: hold.OpKeys}, nil)
	return res.PID, err
}

// Close ends the connection and all goroutines. The process stays while it
// holds something. Closing twice is safe.
func (h *Hold) Close() error {
	h.cancel()
	h.wg.Wait()
	h.reaper.Close()
	return nil
}

// ask has a request made and waits for its response, for a time. note writes
// down what is wanted, with the lock held.
func (h *Hold) ask(ctx context.Context, within time.Duration, req hold.Request, note func()) (hold.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	r := &request{Request: req, done: make(chan response, 1)}
	h.mu.Lock()
	if note != nil {
		note()
	}
	h.queue = append(h.queue, r)
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default: // it is awake
	}
	select {
	case res := <-r.done:
		return res.Response, res.err
	case <-ctx.Done():
		return hold.Response{}, h.unavailable(ctx.Err())
	case <-h.ctx.Done():
		return hold.Response{}, h.unavailable(errors.New("closed"))
	}
}

// run makes requests, and connects again when the connection breaks, until
// Close.
func (h *Hold) run() {
	defer h.wg.Done()
	defer h.leave()
	for {
		var timer <-chan time.Time
		var broken <-chan struct{}
		if h.conn != nil {
			broken = h.conn.broken
		} else if h.wanted() {
			timer = time.After(time.Until(h.next))
		}
		select {
		case <-h.ctx.Done():
			return
		case <-h.wake:
			h.serve()
			continue
		case <-broken:
			h.opts.Log.Warn("the hold process ended; it is started again")
			h.drop()
		case <-timer:
		}
		if h.connect() == nil {
			h.opts.Log.Info("the hold process runs")
		}
	}
}

// mayRun says that there is a process, as far as its socket tells.
func (h *Hold) mayRun() bool {
	_, err := os.Lstat(filepath.Join(h.opts.State, hold.Dir, hold.Socket))
	return err == nil
}

// wanted says that a process is to run though nobody asks for something.
func (h *Hold) wanted() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.keys) > 0 || h.failed != nil
}

// serve makes the requests that wait.
func (h *Hold) serve() {
	for h.ctx.Err() == nil {
		h.mu.Lock()
		if len(h.queue) == 0 {
			h.mu.Unlock()
			return
		}
		r := h.queue[0]
		h.queue = h.queue[1:]
		h.mu.Unlock()
		var res response
		res.Response, res.err = h.call(r.Request)
		h.settle(r, res.err)
		r.done <- res
	}
}

// settle takes note of how a request went. What the process refuses to keep is
// not to be kept, unless something else is wanted by now.
func (h *Hold) settle(r *request, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case errdefs.IsUnavailable(err):
	case r.Op == hold.OpKeep && err != nil && slices.Equal(h.keys[r.Key], r.Paths):
		delete(h.keys, r.Key)
	case r.Op == hold.OpRelease:
		delete(h.released, r.Key)
	}
}

// call makes a request, over a new connection if the old one has broken.
func (h *Hold) call(req hold.Request) (hold.Response, error) {
	ctx, cancel := context.WithTimeout(h.ctx, callTimeout)
	defer cancel()
	if h.conn != nil {
		res, err := h.conn.call(ctx, req)
		if !errors.Is(err, errBroken) {
			return res, err
		}
		h.drop()
	}
	if time.Now().Before(h.next) {
		return hold.Response{}, h.failed
	}
	if err := h.connect(); err != nil {
		return hold.Response{}, err
	}
	ctx, cancel = context.WithTimeout(h.ctx, callTimeout)
	defer cancel()
	res, err := h.conn.call(ctx, req)
	if errors.Is(err, errBroken) {
		h.drop()
		err = h.unavailable(err)
	}
	return res, err
}

// leave ends the connection for good: the process ends with it, unless it holds
// something. One of an older berth does not know of leaving, and waits a while.
func (h *Hold) leave() {
	if h.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), keepTime)
	defer cancel()
	if _, err := h.conn.call(ctx, hold.Request{Op: hold.OpLeave}); err != nil {
		h.opts.Log.Debug("no leave taken of the hold process", "err", err)
	}
	h.drop()
}

func (h *Hold) drop() {
	if h.conn != nil {
		h.conn.close()
		h.conn = nil
	}
}

// connect finds or starts the process, tells it what to keep and learns what
// it keeps already.
func (h *Hold) connect() error {
	ctx, cancel := context.WithTimeout(h.ctx, callTimeout)
	defer cancel()
	c, err := h.dial(ctx)
	if err != nil {
		h.mu.Lock()
		clear(h.released) // nobody is there to close anything
		h.mu.Unlock()
	} else if err = h.sync(ctx, c); err != nil {
		c.close()
	}
	if err != nil {
		if h.ctx.Err() != nil {
			return h.unavailable(errors.New("closed"))
		}
		if h.failed == nil {
			h.wait = restartWait
			h.opts.Log.Warn("no hold process: what containers write last while the daemon is down is lost; it is tried again", "err", err)
		} else {
			h.wait = min(2*h.wait, restartMax)
		}
		h.failed, h.next = h.unavailable(err), time.Now().Add(h.wait)
		return h.failed
	}
	h.conn, h.failed, h.next = c, nil, time.Time{}
	return nil
}

func (h *Hold) unavailable(err error) error {
	return fmt.Errorf("hold process of %s: %w: %w", h.opts.State, err, errdefs.ErrUnavailable)
}

// sync makes both sides know the same keys: the process's own are those of a
// daemon before. A FIFO that is gone is forgotten.
func (h *Hold) sync(ctx context.Context, c *conn) error {
	res, err := c.call(ctx, hold.Request{Op: hold.OpKeys})
	if err != nil {
		return err
	}
	h.mu.Lock()
	wanted, released := maps.Clone(h.keys), maps.Clone(h.released)
	for key, paths := range res.Keys {
		if h.keys[key] == nil && !h.released[key] {
			h.keys[key] = paths
		}
	}
	h.mu.Unlock()
	for key, paths := range wanted {
		if slices.Equal(res.Keys[key], paths) {
			continue
		}
		req := hold.Request{Op: hold.OpKeep, Key: key, Paths: paths}
		_, err := c.call(ctx, req)
		if errors.Is(err, errBroken) {
			return err
		}
		if err != nil {
			h.opts.Log.Warn("output is not held any more", "key", key, "err", err)
		}
		h.settle(&request{Request: req}, err)
	}
	for key := range released {
		req := hold.Request{Op: hold.OpRelease, Key: key}
		if _, err := c.call(ctx, req); errors.Is(err, errBroken) {
			return err
		}
		h.settle(&request{Request: req}, nil)
	}
	return nil
}
