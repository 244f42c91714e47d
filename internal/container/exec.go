package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"berth/internal/logs"
	"berth/internal/spec"
)

// MaxExecOutput is how much of each output stream ExecSync returns.
const MaxExecOutput = 16 << 20

// execDrain bounds the wait for output after the command has ended: what it
// left in the background may hold the output open.
const execDrain = 2 * time.Second

// Streams are what a command is connected to; nil ones are not.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	TTY            bool
	Resize         <-chan remotecommand.TerminalSize
}

// Exec runs a command in a running container and returns its exit code. The
// command is killed when ctx ends.
//
// Errors: ErrNotFound, ErrFailedPrecondition where the container does not run,
// ErrInvalidArgument where the command cannot be executed, ctx's own.
func (s *Service) Exec(ctx context.Context, id string, cmd []string, streams Streams) (code uint32, err error) {
	c, l, err := s.running(id)
	if err != nil {
		return 0, err
	}
	if len(cmd) == 0 {
		return 0, fmt.Errorf("cmd is empty: name the command to execute: %w", errdefs.ErrInvalidArgument)
	}
	ctx = s.Engine.Context(ctx)
	stdin := &endedReader{Reader: streams.Stdin, ended: make(chan struct{})}
	process, err := s.startExec(ctx, l, cmd, streams, stdin)
	if err != nil {
		return 0, fmt.Errorf("exec of %q in container %s: %w", cmd[0], c.ID, err)
	}
	code, err = s.waitExec(ctx, process, stdin.ended, streams.Resize)
	if err == nil {
		s.drainExec(c.ID, process)
	}
	_, deleteErr := process.Delete(context.WithoutCancel(ctx), containerd.WithProcessKill)
	if err = errors.Join(err, ignoreGone(deleteErr)); err != nil {
		return 0, fmt.Errorf("exec of %q in container %s: %w", cmd[0], c.ID, err)
	}
	return code, nil
}

func (s *Service) startExec(ctx context.Context, l *live, cmd []string, streams Streams, stdin io.Reader) (containerd.Process, error) {
	container, err := s.client.LoadContainer(ctx, l.id)
	if err != nil {
		return nil, err
	}
	oci, err := container.Spec(ctx)
	if err != nil {
		return nil, err
	}
	process, err := spec.ExecProcess(oci, cmd, streams.TTY)
	if err != nil {
		return nil, err
	}
	execID, err := newID()
	if err != nil {
		return nil, err
	}
	p, err := l.task.Exec(ctx, execID, process, cio.NewCreator(s.execIO(l.id, streams, stdin)))
	if err != nil {
		return nil, err
	}
	if err := p.Start(ctx); err != nil {
		if ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		_, deleteErr := p.Delete(context.WithoutCancel(ctx))
		return nil, errors.Join(err, ignoreGone(deleteErr))
	}
	return p, nil
}

// execIO connects the streams through FIFOs in the container's directory.
func (s *Service) execIO(id string, streams Streams, stdin io.Reader) cio.Opt {
	return func(o *cio.Streams) {
		o.FIFODir = filepath.Join(s.Paths.ContainerState(id), "exec")
		o.Stdout, o.Stderr, o.Terminal = streams.Stdout, streams.Stderr, streams.TTY
		if streams.Stdin != nil {
			o.Stdin = stdin
		}
	}
}

// waitExec waits for the command, and meanwhile hands on the end of its input
// and the sizes of its terminal. Where ctx ends first the command is killed.
func (s *Service) waitExec(ctx context.Context, p containerd.Process, stdinEnded <-chan struct{}, resize <-chan remotecommand.TerminalSize) (uint32, error) {
	exit, err := p.Wait(context.WithoutCancel(ctx))
	if err != nil {
		return 0, err
	}
	for {
		select {
		case status := <-exit:
			return status.ExitCode(), status.Error()
		case <-stdinEnded:
			stdinEnded = nil
			if err := p.CloseIO(ctx, containerd.WithStdinCloser); err != nil && !notFound(err) {
				s.Log.Debug("end of input not handed on", "exec", p.ID(), "err", err)
			}
		case size, open := <-resize:
			if !open {
				resize = nil
				continue
			}
			if err := p.Resize(ctx, uint32(size.Width), uint32(size.Height)); err != nil && !notFound(err) {
				s.Log.Debug("terminal not resized", "exec", p.ID(), "err", err)
			}
		case <-ctx.Done():
			if err := p.Kill(context.WithoutCancel(ctx), syscall.SIGKILL); err != nil && !notFound(err) {
				return 0, errors.Join(ctx.Err(), err)
			}
			<-exit
			return 0, ctx.Err()
		}
	}
}

// drainExec waits for the rest of the command's output.
func (s *Service) drainExec(id string, p containerd.Process) {
	drained := make(chan struct{})
	go func() { // ends at the latest when Delete closes the FIFOs
		p.IO().Wait()
		close(drained)
	}()
	timer := time.NewTimer(execDrain)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
		s.Log.Debug("output of an ended command goes on and is cut", "container", id, "exec", p.ID())
	}
}

// An endedReader tells when its reader has no more.
type endedReader struct {
	io.Reader
	once  sync.Once
	ended chan struct{}
}

func (r *endedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil {
		r.once.Do(func() { close(r.ended) })
	}
	return n, err
}

// ExecSync runs a command and returns what it wrote. A timeout of zero is none.
//
// Errors: as Exec; context.DeadlineExceeded where the command took too long and was
// killed; ErrResourceExhausted where it wrote more than MaxExecOutput.
func (s *Service) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, code uint32, err error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	var out, errs cappedBuffer
	code, err = s.Exec(ctx, id, cmd, Streams{Stdout: &out, Stderr: &errs})
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, nil, 0, fmt.Errorf("command %q in container %s took longer than its timeout of %s and was killed: %w", cmd[0], id, timeout, context.DeadlineExceeded)
	case err != nil:
		return nil, nil, 0, err
	}
	for name, b := range map[string]*cappedBuffer{"stdout": &out, "stderr": &errs} {
		if b.over {
			return nil, nil, 0, fmt.Errorf("command %q in container %s wrote more than %d bytes to %s; write less, or use Exec, which streams: %w",
				cmd[0], id, MaxExecOutput, name, errdefs.ErrResourceExhausted)
		}
	}
	return out.b.Bytes(), errs.b.Bytes(), code, nil
}

// A cappedBuffer keeps the first MaxExecOutput bytes and takes the rest, so
// that the command does not hang.
type cappedBuffer struct {
	b    bytes.Buffer
	over bool
}

func (c *cappedBuffer) Write(p []byte) (int, error) {
	keep := min(len(p), MaxExecOutput-c.b.Len())
	c.over = c.over || keep < len(p)
	c.b.Write(p[:keep])
	return len(p), nil
}

// Attach connects streams to a running container until its output ends or the
// client goes.
func (s *Service) Attach(ctx context.Context, id string, streams Streams) error {
	c, l, err := s.running(id)
	if err != nil {
		return err
	}
	if l.io == nil {
		return fmt.Errorf("attach to container %s: its output could not be taken up after a restart of berth: %w", c.ID, errdefs.ErrUnavailable)
	}
	ctx, cancel := context.WithCancel(s.Engine.Context(ctx))
	defer cancel()
	resized := make(chan struct{})
	go func() {
		defer close(resized)
		s.resize(ctx, l, streams.Resize)
	}()
	err = l.io.Attach(ctx, logs.AttachOptions{
		Stdin: streams.Stdin, Stdout: streams.Stdout, Stderr: streams.Stderr,
		CloseStdin: func() error { return ignoreGone(l.task.CloseIO(ctx, containerd.WithStdinCloser)) },
	})
	cancel()
	<-resized
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", c.ID, err)
	}
	return nil
}

func (s *Service) resize(ctx context.Context, l *live, sizes <-chan remotecommand.TerminalSize) {
	for {
		select {
		case size, open := <-sizes:
			if !open {
				return
			}
			if err := l.task.Resize(ctx, uint32(size.Width), uint32(size.Height)); err != nil && !notFound(err) {
				s.Log.Debug("terminal not resized", "container", l.id, "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}
