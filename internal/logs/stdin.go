package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Stdin carries clients' input into a container's FIFO. It is the half of
// attaching that does not depend on who reads the output. It is safe for
// concurrent use.
type Stdin struct {
	opts Options

	mu    sync.Mutex // guards ended
	ended bool       // StdinOnce: the first client's input has ended
}

// NewStdin returns the Stdin of a container; of the options it uses Dir, ID,
// Stdin, StdinOnce and TTY.
func NewStdin(o Options) *Stdin { return &Stdin{opts: o} }

// End says that the container's input has ended: clients' input is not taken
// any more.
func (s *Stdin) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

// Attach is IO.Attach, with output carried by someone else. open starts that
// and says where its end is told; stop ends it.
func (s *Stdin) Attach(ctx context.Context, o AttachOptions, open func() (output <-chan error, stop func(), err error)) error {
	var in *os.File
	if o.Stdin != nil && s.takes() {
		var err error
		// Read and write, so that it neither fails nor waits before the
		// container has its end.
		if in, err = openFIFO(filepath.Join(s.opts.Dir, stdin), unix.O_RDWR); err != nil {
			return s.attachError(err)
		}
		defer in.Close()
	}
	output, stop, err := open()
	if err != nil {
		return s.attachError(err)
	}
	defer stop()
	input := make(chan error, 1)
	if in != nil && s.takes() {
		go func() { input <- s.carry(in, o) }()
	}
	for {
		select {
		case err := <-output:
			return s.attachError(err)
		case err := <-input:
			if err != nil || !s.once() {
				return s.attachError(err)
			}
			input = nil // output goes on
		case <-ctx.Done():
			return s.attachError(ctx.Err())
		}
	}
}

func (s *Stdin) attachError(err error) error {
	if err == nil || errors.Is(err, errdefs.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("attach to container %s: %w", s.opts.ID, err)
}

// once says that the end of a client's input is the end of the container's. A
// terminal stays: closing it would hang up on the container.
func (s *Stdin) once() bool { return s.opts.StdinOnce && !s.opts.TTY }

func (s *Stdin) takes() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opts.Stdin && !s.ended
}

// carry copies until the client's input ends or in is closed, and then, if it
// was the only one there will be, closes the container's stdin.
func (s *Stdin) carry(in *os.File, o AttachOptions) error {
	// A plain copy: the client's error is as good as its end.
	_, err := io.Copy(struct{ io.Writer }{in}, o.Stdin)
	if err != nil && errors.Is(err, os.ErrClosed) {
		err = nil
	}
	if !s.once() {
		return nil
	}
	s.End()
	if err := in.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	if o.CloseStdin == nil {
		return nil
	}
	if err := o.CloseStdin(); err != nil {
		return fmt.Errorf("close stdin: %w", err)
	}
	return nil
}
