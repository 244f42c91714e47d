package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
	"berth/internal/manifest"
	"berth/internal/podrun"
)

// followPod runs a pod in the foreground. lines guards the output, which
// opts.Say writes to as well.
func followPod(cmd *cobra.Command, opts podrun.Options, roots podrun.Roots, keep bool, lines *sync.Mutex) error {
	ctx := cmd.Context()
	logs := newFollower(ctx, opts.Client, cmd.OutOrStdout(), cmd.ErrOrStderr(), lines)
	opts.Started = logs.follow
	r := podrun.New(opts)
	if err := r.Start(ctx); err != nil {
		return errors.Join(err, logs.end())
	}
	meta := opts.Plan.Sandbox.Metadata
	opts.Say("pod %s runs (%s); Ctrl-C stops and removes it", client.PodName(meta), shortID(r.ID()))
	code, err := r.Wait(ctx)
	if err == nil && keep {
		return errors.Join(codeError(code), logs.end())
	}
	pod := &runtime.PodSandbox{Id: r.ID(), Metadata: meta, Annotations: opts.Plan.Sandbox.Annotations}
	if ctx.Err() != nil {
		opts.Say("stopping pod %s, at most %s; Ctrl-C again kills it at once", client.PodName(meta), opts.Plan.Grace)
	}
	err = errors.Join(err, endPod(ctx, opts.Client, roots, pod, logs))
	if err == nil {
		err = codeError(code)
	}
	return err
}

func codeError(code int32) error {
	if code == 0 {
		return nil
	}
	return &exitError{code: int(code)}
}

// endPod stops and removes the pod. A signal that comes meanwhile ends the grace
// period.
func endPod(ctx context.Context, cl *client.Client, roots podrun.Roots, pod *runtime.PodSandbox, logs *follower) error {
	impatient, done := signal.NotifyContext(context.WithoutCancel(ctx), os.Interrupt, syscall.SIGTERM)
	defer done()
	err := podrun.Stop(impatient, cl, pod, nil)
	ctx = context.WithoutCancel(ctx)
	if impatient.Err() != nil {
		err = podrun.Stop(ctx, cl, pod, new(noGrace))
	}
	if err != nil {
		return errors.Join(err, logs.end())
	}
	return errors.Join(logs.end(), podrun.Remove(ctx, cl, roots, pod))
}

// A follower shows the logs of several containers at once, each line with the
// container's name before it.
type follower struct {
	ctx         context.Context
	cancel      context.CancelFunc
	client      *client.Client
	out, errOut io.Writer
	lines       *sync.Mutex // guards out and errOut, for a line at a time
	wg          sync.WaitGroup

	mu  sync.Mutex // guards err
	err error
}

func newFollower(ctx context.Context, cl *client.Client, out, errOut io.Writer, lines *sync.Mutex) *follower {
	f := &follower{client: cl, out: out, errOut: errOut, lines: lines}
	// The last lines come after Ctrl-C.
	f.ctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return f
}

// follow shows a container's log until it has ended.
func (f *follower) follow(c *manifest.Container, id, _ string) {
	stdout, stderr := f.prefixed(f.out, c.Name), f.prefixed(f.errOut, c.Name)
	f.wg.Go(func() {
		err := f.client.Logs(f.ctx, id, client.LogOptions{Follow: true}, stdout, stderr)
		err = errors.Join(err, stdout.flush(), stderr.flush())
		if err != nil && f.ctx.Err() == nil {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.err = errors.Join(f.err, fmt.Errorf("log of container %s: %w", c.Name, err))
		}
	})
}

// end waits for the logs of containers that have ended.
func (f *follower) end() error {
	late := time.AfterFunc(logsDrain, f.cancel)
	f.wg.Wait()
	late.Stop()
	f.cancel()
	return f.err
}

func (f *follower) prefixed(w io.Writer, name string) *prefixWriter {
	return &prefixWriter{mu: f.lines, w: w, name: name}
}
