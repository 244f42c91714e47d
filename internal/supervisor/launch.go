package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"berth/internal/host"
	"berth/internal/supervisor/wire"
)

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// open connects to a supervisor as one who watches it, and starts it where
// nobody answers.
func (f *Fleet) open(ctx context.Context, name string) (*wire.Conn, error) {
	for {
		c, err := f.watch(ctx, name)
		if err == nil {
			return c, nil
		}
		ended, err := f.start(ctx, name)
		if err != nil {
			return nil, err
		}
		if c, err = f.watch(ctx, name); err == nil {
			return c, nil
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

func (f *Fleet) watch(ctx context.Context, name string) (*wire.Conn, error) {
	c, _, _, err := f.ask(ctx, name, wire.Request{Op: wire.OpWatch})
	return c, err
}

// ask makes a request on a connection of its own, which is the caller's to
// close where there is no error.
func (f *Fleet) ask(ctx context.Context, name string, req wire.Request, fds ...int) (*wire.Conn, wire.Response, []int, error) {
	var res wire.Response
	req.Version = wire.Version
	c, err := wire.Dial(wire.Home(f.opts.State, name))
	if err != nil {
		return nil, res, nil, fmt.Errorf("supervisor %s does not answer: %w: %w", name, err, errdefs.ErrUnavailable)
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	err = c.Send(req, fds...)
	var got []int
	if err == nil {
		got, err = c.Receive(&res)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case err != nil:
		err = fmt.Errorf("supervisor %s: %w: %w", name, err, errdefs.ErrUnavailable)
	default:
		err = refusal(res)
	}
	if err != nil {
		return nil, res, nil, errors.Join(err, wire.Close(got), c.Close())
	}
	return c, res, got, nil
}

// call is ask for one answer.
func (f *Fleet) call(ctx context.Context, name string, req wire.Request, fds ...int) (wire.Response, []int, error) {
	c, res, got, err := f.ask(ctx, name, req, fds...)
	if err == nil {
		err = c.Close()
	}
	return res, got, err
}

// refusal turns a refusal into an error.
func refusal(res wire.Response) error {
	if res.OK {
		return nil
	}
	kind := map[string]error{
		wire.KindNotFound: errdefs.ErrNotFound, wire.KindPrecondition: errdefs.ErrFailedPrecondition,
		wire.KindInvalid: errdefs.ErrInvalidArgument, wire.KindExhausted: errdefs.ErrResourceExhausted,
		wire.KindUnavailable: errdefs.ErrUnavailable,
	}[res.Kind]
	if kind == nil {
		kind = errdefs.ErrUnknown
	}
	return &refused{res.Error, kind}
}

// refused is an error as the supervisor said it.
type refused struct {
	text string
	kind error
}

func (e *refused) Error() string { return e.text }
func (e *refused) Unwrap() error { return e.kind }

// start runs a supervisor in a session and a cgroup of its own and returns when
// it serves or has ended. Its standard streams are none of the daemon's.
func (f *Fleet) start(ctx context.Context, name string) (ended <-chan struct{}, err error) {
	home := wire.Home(f.opts.State, name)
	if err := os.MkdirAll(filepath.Dir(home), 0o700); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(home, 0o711); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(home, wire.Log), os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	args := []string{"serve", "--state", f.opts.State, "--name", name}
	if f.opts.Events != "" {
		args = append(args, "--events", f.opts.Events)
	}
	cmd := exec.Command(f.opts.Binary, args...)
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.Stdout, cmd.Stderr = w, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", f.opts.Binary, err)
	}
	p, err := host.ProcessOf(cmd.Process.Pid) // ours to reap, so it is there
	if err != nil {
		return nil, err
	}
	ended = f.reaper.watch(cmd, p, "supervisor")
	if f.opts.Isolate != nil {
		if err := f.opts.Isolate(ctx, name, p.PID); err != nil {
			f.opts.Log.Warn("a supervisor stays in the daemon's cgroup; stopping that would end its containers", "supervisor", name, "err", err)
		}
	}
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	said, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("wait for %s serve: %w", f.opts.Binary, err)
	}
	if len(said) == 0 {
		<-ended
		if code := cmd.ProcessState; code != nil && !code.Success() {
			return nil, fmt.Errorf("%s serve: %v; see %s", f.opts.Binary, code, log.Name())
		}
	}
	return ended, nil
}
