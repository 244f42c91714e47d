package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"berth/internal/host"
	"berth/internal/logs"
	"berth/internal/spec"
)

// MaxExecOutput is how much of each output stream ExecSync returns.
const MaxExecOutput = 16 << 20

// execDrain bounds the wait for output after the command has ended: what it
// left in the background may hold the output open.
const execDrain = 2 * time.Second

// execEnd bounds each call that ends a command: a process may hang in the
// kernel, or its shim. What is left then goes with the container.
const execEnd = 30 * time.Second

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
// Errors: ErrNotFound, ErrFailedPrecondition where the container does not run
// or ends meanwhile, ErrInvalidArgument where the command cannot be executed, ctx's own.
func (s *Service) Exec(ctx context.Context, id string, cmd []string, streams Streams) (code uint32, err error) {
	c, l, err := s.running(id)
	if err != nil {
		return 0, err
	}
	if len(cmd) == 0 {
		return 0, fmt.Errorf("cmd is empty: name the command to execute: %w", errdefs.ErrInvalidArgument)
	}
	ctx = s.Engine.Context(ctx)
	main, _ := host.ProcessOf(c.PID) // one that is gone is not alive
	code, err = s.runExec(ctx, l, cmd, streams)
	if err != nil && ctx.Err() == nil && (c.PID > 0 && main.Ending() || l.hasEnded(ctx)) {
		// What the runtime says is that it met no process, or nothing at all.
		s.Log.Debug("a command met the end of its container", "container", c.ID, "err", err)
		err = fmt.Errorf("the container has just ended: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return 0, fmt.Errorf("exec of %q in container %s: %w", cmd[0], c.ID, err)
	}
	return code, nil
}

func (s *Service) runExec(ctx context.Context, l *live, cmd []string, streams Streams) (uint32, error) {
	stdin := &endedReader{Reader: streams.Stdin, ended: make(chan struct{})}
	process, err := s.startExec(ctx, l, cmd, streams, stdin)
	if err != nil {
		return 0, err
	}
	code, err := s.waitExec(ctx, process, stdin.ended, streams.Resize)
	if err != nil {
		return 0, errors.Join(err, deleteExec(ctx, process))
	}
	s.drainExec(l.id, process)
	return code, s.forgetExec(l.id, process)
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
	task, err := l.task()
	if err != nil {
		return nil, err
	}
	p, err := task.Exec(ctx, execID, process, cio.NewCreator(s.execIO(l.id, streams, stdin)))
	if err != nil {
		return nil, err
	}
	if err := p.Start(ctx); err != nil {
		if refused(ctx, err) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		return nil, errors.Join(err, deleteExec(ctx, p))
	}
	return p, nil
}

// deleteExec ends a command that runs, and removes it, also for a caller that
// has gone.
func deleteExec(ctx context.Context, p containerd.Process) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), execEnd)
	defer cancel()
	_, err := p.Delete(ctx, containerd.WithProcessKill)
	return ignoreGone(err)
}

// forgetExec removes a command that has ended. A shim may take until all is
// gone that holds the command's output; the caller does not wait for that.
func (s *Service) forgetExec(id string, p containerd.Process) error {
	removed := make(chan error, 1)
	s.wg.Go(func() {
		ctx, cancel := context.WithTimeout(s.base, execEnd)
		defer cancel()
		_, err := p.Delete(ctx)
		removed <- ignoreGone(err)
	})
	timer := time.NewTimer(execDrain)
	defer timer.Stop()
	select {
	case err := <-removed:
		return err
	case <-timer.C:
		s.Log.Debug("a command has ended, and its shim does not let go of it yet", "container", id, "exec", p.ID())
		p.IO().Cancel() // nothing is written to the caller's streams after it has returned
		p.IO().Wait()
		return nil
	}
}

func (s *Service) execDir(id string) string {
	return filepath.Join(s.Paths.ContainerState(id), "exec")
}

// endExecs ends the commands of a daemon that was killed: nobody reads their
// output, so they would hang for as long as the container runs. Their FIFOs
// name them.
func (s *Service) endExecs(ctx context.Context, id string, task containerd.Task) error {
	fifos, err := filepath.Glob(filepath.Join(s.execDir(id), "*", "*-stdout"))
	if err != nil {
		return err
	}
	ctx = s.Engine.Context(ctx)
	errs := []error{}
	for _, fifo := range fifos {
		errs = append(errs, ignoreGone(endExec(ctx, task, strings.TrimSuffix(filepath.Base(fifo), "-stdout"))))
	}
	return errors.Join(append(errs, host.RemoveTree(s.Paths.State, filepath.Join("containers", id, "exec")))...)
}

// endExec ends a command by its ID. A process that was loaded does not know its
// PID, without which Delete does not kill it.
func endExec(ctx context.Context, task containerd.Task, id string) error {
	p, err := task.LoadProcess(ctx, id, nil)
	if err != nil {
		return err
	}
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	exit, err := p.Wait(wait)
	if err != nil {
		return err
	}
	if err := killExec(ctx, p, exit); err != nil {
		return err
	}
	return deleteExec(ctx, p)
}

// execIO connects the streams through FIFOs in the container's directory.
func (s *Service) execIO(id string, streams Streams, stdin io.Reader) cio.Opt {
	return func(o *cio.Streams) {
		o.FIFODir = s.execDir(id)
		o.Stdout, o.Stderr, o.Terminal = streams.Stdout, streams.Stderr, streams.TTY
		if streams.Stdin != nil {
			o.Stdin = stdin
		}
	}
}

// waitExec waits for the command, and meanwhile hands on the end of its input
// and the sizes of its terminal. Where ctx ends first the command is killed.
func (s *Service) waitExec(ctx context.Context, p containerd.Process, stdinEnded <-chan struct{}, resize <-chan remotecommand.TerminalSize) (uint32, error) {
	wait, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	exit, err := p.Wait(wait)
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
			return 0, errors.Join(ctx.Err(), killExec(wait, p, exit))
		}
	}
}

// killExec kills a command and waits for its end.
func killExec(ctx context.Context, p containerd.Process, exit <-chan containerd.ExitStatus) error {
	ctx, cancel := context.WithTimeout(ctx, execEnd)
	defer cancel()
	if err := p.Kill(ctx, syscall.SIGKILL); err != nil {
		return ignoreGone(err)
	}
	select {
	case <-exit:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("it does not end of SIGKILL; a process may hang in the kernel (see state D in ps): %w", ctx.Err())
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
		CloseStdin: func() error {
			task, err := l.task()
			if err != nil {
				return err
			}
			return ignoreGone(task.CloseIO(ctx, containerd.WithStdinCloser))
		},
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
			task, err := l.task()
			if err == nil {
				err = ignoreGone(task.Resize(ctx, uint32(size.Width), uint32(size.Height)))
			}
			if err != nil {
				s.Log.Debug("terminal not resized", "container", l.id, "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}
