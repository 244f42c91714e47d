package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"berth/internal/logs"
	"berth/internal/supervisor/wire"
)

// Task tells of a container, ErrNotFound where the supervisor has none of the
// ID, ErrUnavailable where it does not answer.
func (f *Fleet) Task(ctx context.Context, name, id string) (wire.Task, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, _, err := f.call(ctx, name, wire.Request{Op: wire.OpTasks, ID: id})
	if err != nil {
		return wire.Task{}, err
	}
	if len(res.Tasks) != 1 {
		return wire.Task{}, fmt.Errorf("supervisor %s has no container %s: %w", name, id, errdefs.ErrNotFound)
	}
	return res.Tasks[0], nil
}

// Delete kills a container where it runs, and removes it. One that is not
// there is no error, nor is a supervisor that does not run and has no state of
// it.
func (f *Fleet) Delete(ctx context.Context, name, id string) error {
	_, _, err := f.call(ctx, name, wire.Request{Op: wire.OpDelete, ID: id})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// A Stdio is the daemon's end of the stdio of a container that a supervisor
// has.
type Stdio struct {
	fleet *Fleet
	name  string
	opts  logs.Options
	input *logs.Stdin
	ended chan struct{}
}

// Stdio returns that of a container; nothing is opened.
func (f *Fleet) Stdio(name string, o logs.Options) *Stdio {
	s := &Stdio{fleet: f, name: name, opts: o, input: logs.NewStdin(o), ended: make(chan struct{})}
	close(s.ended)
	return s
}

// Drained is closed: the supervisor tells the end of a container when its
// output is in the log.
func (s *Stdio) Drained() <-chan struct{} { return s.ended }

// Reopen opens the log file by its path again.
func (s *Stdio) Reopen() error {
	ctx, cancel := context.WithTimeout(s.fleet.ctx, callTimeout)
	defer cancel()
	_, _, err := s.fleet.call(ctx, s.name, wire.Request{Op: wire.OpReopen, ID: s.opts.ID})
	if err != nil {
		return fmt.Errorf("reopen log of container %s: %w", s.opts.ID, err)
	}
	return nil
}

// Close gives up what is kept for the container.
func (s *Stdio) Close() error { return s.fleet.Release(s.name, s.opts.ID) }

// Attach is logs.IO.Attach, with the output from the supervisor.
func (s *Stdio) Attach(ctx context.Context, o logs.AttachOptions) error {
	if end := o.CloseStdin; end != nil {
		o.CloseStdin = func() error { return errors.Join(s.fleet.endStdin(s.name, s.opts.ID), end()) }
	}
	return s.input.Attach(ctx, o, func() (<-chan error, func(), error) {
		c, res, _, err := s.fleet.ask(ctx, s.name, wire.Request{
			Op: wire.OpAttach, ID: s.opts.ID, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
		})
		if err != nil {
			return nil, nil, err
		}
		if res.StdinClosed {
			s.input.End()
		}
		output := make(chan error, 1)
		go func() { output <- s.carry(c, o) }() // ends with the connection and the client's streams
		return output, func() { _ = c.Close() }, nil
	})
}

// carry hands on frames until the last.
func (s *Stdio) carry(c *wire.Conn, o logs.AttachOptions) error {
	var buf []byte
	for {
		stream, data, err := wire.ReadFrame(c, buf)
		if err != nil {
			return s.cut(err)
		}
		buf = data
		var to io.Writer
		switch stream {
		case wire.FrameStdout:
			to = o.Stdout
		case wire.FrameStderr:
			to = o.Stderr
		case wire.FrameEnd:
			var res wire.Response
			if err := json.Unmarshal(data, &res); err != nil {
				return err
			}
			return refusal(res)
		}
		if to == nil {
			continue
		}
		if _, err := to.Write(data); err != nil {
			return fmt.Errorf("write to the client: %w", err)
		}
	}
}

// cut says why the supervisor ended the connection without a last word.
func (s *Stdio) cut(err error) error {
	ctx, cancel := context.WithTimeout(s.fleet.ctx, callTimeout)
	defer cancel()
	if _, taskErr := s.fleet.Task(ctx, s.name, s.opts.ID); taskErr == nil {
		return fmt.Errorf("the client did not take the output fast enough and was dropped; read the log instead: %w", errdefs.ErrResourceExhausted)
	}
	return errors.Join(fmt.Errorf("its supervisor ended: %w", errdefs.ErrUnavailable), err)
}
