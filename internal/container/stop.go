package container

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/signal"

	"berth/internal/record"
	"berth/internal/steps"
)

const (
	// defaultGrace is what a container of a stopped pod gets; a kubelet stops
	// its containers itself, each with its own grace period, before the pod.
	defaultGrace = 10 * time.Second
	// killTimeout bounds the wait for a process that was sent SIGKILL.
	killTimeout = 30 * time.Second
	// endsSoon bounds the wait for the end of a container that took no signal.
	endsSoon = 2 * time.Second
)

// Stop asks the container to end and, after the grace period, ends it. One
// that does not run, or is not there, is no error.
func (s *Service) Stop(ctx context.Context, id string, grace time.Duration) error {
	c, err := s.Store.Containers.Resolve(id)
	if notFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	// Calls with one grace period share it. One with another has its own: a
	// shorter one ends the container earlier.
	key := fmt.Sprintf("stop of container %s within %s", c.ID, grace)
	_, err = s.flights.Do(ctx, key, func(ctx context.Context) (string, error) {
		return "", s.stop(ctx, c.ID, grace)
	})
	return err
}

func (s *Service) stop(ctx context.Context, id string, grace time.Duration) error {
	// A create or start that is under way comes first.
	release, err := s.slots.Acquire(ctx, id)
	if err != nil {
		return err
	}
	release()
	c, err := s.Store.Containers.Get(id)
	if err != nil {
		return ignoreGone(err)
	}
	l := s.liveOf(id)
	switch {
	case l == nil && c.State == record.ContainerRunning:
		return fmt.Errorf("container %s is being taken up after a restart of berth; try again: %w", id, errdefs.ErrUnavailable)
	case l == nil:
		return nil
	}
	var list []steps.Step
	if grace > 0 {
		list = append(list, steps.Step{Name: "signal", Do: func(ctx context.Context) error { return s.ask(ctx, c, l, grace) }})
	}
	list = append(list, steps.Step{Name: "kill", Do: func(ctx context.Context) error { return s.kill(ctx, l) }})
	return s.Steps.Run(s.Engine.Context(ctx), steps.StopContainer, id, list...)
}

// ask sends the stop signal and waits for the end or the grace period's.
func (s *Service) ask(ctx context.Context, c *record.Container, l *live, grace time.Duration) error {
	sig, err := signal.ParseSignal(c.StopSignal)
	if err != nil { // recorded by a berth that did not look
		s.Log.Warn("the container's stop signal is none; SIGTERM is used", "container", c.ID, "signal", c.StopSignal)
		sig = syscall.SIGTERM
	}
	if err := l.send(ctx, sig); err != nil {
		return err
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-l.exited:
		return nil
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// send sends a signal. A container that ends meanwhile takes none, and the shim
// that would pass it on may be gone with it; its end is then recorded soon.
func (l *live) send(ctx context.Context, sig syscall.Signal, opts ...containerd.KillOpts) error {
	select {
	case <-l.exited:
		return nil
	default:
	}
	task, err := l.task()
	if err == nil {
		err = task.Kill(ctx, sig, opts...)
	}
	if err == nil || notFound(err) {
		return nil
	}
	timer := time.NewTimer(endsSoon)
	defer timer.Stop()
	select {
	case <-l.exited:
		return nil
	case <-timer.C:
		return err
	case <-ctx.Done():
		return errors.Join(err, ctx.Err())
	}
}

// kill ends the container if it still runs and waits until its end is recorded.
func (s *Service) kill(ctx context.Context, l *live) error {
	if err := l.send(ctx, syscall.SIGKILL, containerd.WithKillAll); err != nil {
		return err
	}
	timer := time.NewTimer(killTimeout)
	defer timer.Stop()
	select {
	case <-l.exited:
		return nil
	case <-timer.C:
		select {
		case <-l.ended:
			return fmt.Errorf("container %s has ended, and this cannot be recorded; see berth's log and whether its disk is full: %w", l.id, errdefs.ErrUnavailable)
		default:
		}
		return fmt.Errorf("container %s does not end of SIGKILL; a process of it may hang in the kernel (see state D in ps): %w", l.id, errdefs.ErrUnavailable)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// StopAll ends every container of a sandbox, side by side, and returns what
// went wrong with each.
func (s *Service) StopAll(ctx context.Context, sandboxID string) error {
	var wg sync.WaitGroup
	all := s.of(sandboxID)
	errs := make([]error, len(all))
	for i, c := range all {
		wg.Go(func() { errs[i] = s.stop(ctx, c.ID, defaultGrace) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
