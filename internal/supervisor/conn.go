package supervisor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"berth/internal/host"
	"berth/internal/supervisor/hold"
)

// errBroken says that a connection is of no more use.
var errBroken = errors.New("connection broken")

// A conn is one connection to the hold process. Calls are made one at a time.
type conn struct {
	c         net.Conn
	responses chan hold.Response
	broken    chan struct{} // closed when the other side has ended
	ended     chan struct{}
}

func newConn(c net.Conn) *conn {
	k := &conn{c: c, responses: make(chan hold.Response, 1), broken: make(chan struct{}), ended: make(chan struct{})}
	go k.read()
	return k
}

// read hands on responses and so notices at once when the process dies.
func (k *conn) read() {
	defer close(k.ended)
	defer close(k.broken)
	dec := json.NewDecoder(bufio.NewReader(k.c))
	for {
		var res hold.Response
		if err := dec.Decode(&res); err != nil {
			return
		}
		select {
		case k.responses <- res:
		default:
			return // an answer that was not asked for
		}
	}
}

// call makes one request. A connection on which a call was given up is broken:
// its answer may still come.
func (k *conn) call(ctx context.Context, req hold.Request) (hold.Response, error) {
	req.Version = hold.Version
	line, err := json.Marshal(req)
	if err != nil {
		return hold.Response{}, err
	}
	if len(line) >= hold.MaxLine {
		return hold.Response{}, fmt.Errorf("hold of %s: the paths are too long: %w", req.Key, errdefs.ErrInvalidArgument)
	}
	deadline, _ := ctx.Deadline()
	k.c.SetWriteDeadline(deadline)
	if _, err := k.c.Write(append(line, '\n')); err != nil {
		k.c.Close()
		return hold.Response{}, fmt.Errorf("%w: %w", errBroken, err)
	}
	select {
	case res := <-k.responses:
		return res, answer(req, res)
	case <-k.broken:
		return hold.Response{}, errBroken
	case <-ctx.Done():
		k.c.Close()
		return hold.Response{}, fmt.Errorf("%w: %w", errBroken, ctx.Err())
	}
}

// answer turns a refusal into an error.
func answer(req hold.Request, res hold.Response) error {
	switch {
	case res.Version != hold.Version:
		return fmt.Errorf("hold process speaks version %d, this berth %d: end that process: %w", res.Version, hold.Version, errdefs.ErrFailedPrecondition)
	case res.OK:
		return nil
	case strings.Contains(res.Error, syscall.ENOENT.Error()):
		return fmt.Errorf("hold of %s: %s: %w", req.Key, res.Error, errdefs.ErrNotFound)
	}
	return fmt.Errorf("hold of %s: %s: %w", req.Key, res.Error, errdefs.ErrInvalidArgument)
}

func (k *conn) close() {
	k.c.Close()
	<-k.ended
}

// dial connects to the process, and starts it where nobody answers.
func (h *Hold) dial(ctx context.Context) (*conn, error) {
	for {
		c, err := h.dialOnce(ctx)
		if err == nil {
			return newConn(c), nil
		}
		ended, err := h.start(ctx)
		if err != nil {
			return nil, err
		}
		if c, err = h.dialOnce(ctx); err == nil {
			return newConn(c), nil
		}
		// Another one was just starting, or ending; it holds the lock.
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect: %w: %w", ctx.Err(), err)
		case <-ended:
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect: %w: %w", ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (h *Hold) dialOnce(ctx context.Context) (net.Conn, error) {
	dir, err := os.Open(filepath.Join(h.opts.State, hold.Dir))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var d net.Dialer
	return d.DialContext(ctx, "unix", hold.Address(dir).Name)
}

// start runs the process in a session of its own and returns when it serves or
// has ended. Its standard streams are none of the daemon's, so that nobody who
// waits for the end of the daemon's output waits for this process.
//
// Under systemd it stays in the daemon's cgroup: the unit has
// KillMode=process.
func (h *Hold) start(ctx context.Context) (ended <-chan struct{}, err error) {
	dir := filepath.Join(h.opts.State, hold.Dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(dir, hold.Log), os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command(h.opts.Binary, "hold", "--state", h.opts.State)
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.Stdout, cmd.Stderr = w, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", h.opts.Binary, err)
	}
	p, err := host.ProcessOf(cmd.Process.Pid) // ours to reap, so it is there
	if err != nil {
		return nil, err
	}
	ended = h.reaper.watch(cmd, p, "hold")
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	said, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("wait for %s hold: %w", h.opts.Binary, err)
	}
	if len(said) == 0 {
		<-ended
		if code := cmd.ProcessState; code != nil && !code.Success() {
			return nil, fmt.Errorf("%s hold: %v; see %s", h.opts.Binary, code, log.Name())
		}
	}
	return ended, nil
}
