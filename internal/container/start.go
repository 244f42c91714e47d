package container

import (
	"context"
	"errors"
	"fmt"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/logs"
	"berth/internal/record"
	"berth/internal/steps"
)

// startExitCode is the exit code of a container that could not be started, as
// Docker and containerd report it.
const startExitCode = 128

// Start starts a created container. One that runs is no error.
//
// Errors: ErrNotFound; ErrFailedPrecondition for one that has ended, or whose
// sandbox is not ready. Where the runtime refuses the container it is exited
// with reason StartError.
func (s *Service) Start(ctx context.Context, id string) error {
	c, err := s.find(id)
	if err != nil {
		return err
	}
	_, err = s.flights.Do(ctx, "start of container "+c.ID, func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, opTimeout)
		defer cancel()
		return "", s.start(ctx, c.ID)
	})
	return err
}

func (s *Service) start(ctx context.Context, id string) error {
	release, err := s.slots.Acquire(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	c, err := s.Store.Containers.Get(id)
	if err != nil {
		return err
	}
	switch c.State {
	case record.ContainerRunning:
		return nil
	case record.ContainerCreated:
	default:
		return fmt.Errorf("container %s is %s and cannot be started again; create another one: %w", id, c.State, errdefs.ErrFailedPrecondition)
	}
	if _, err := s.sandbox(c.SandboxID); err != nil {
		return err
	}
	// What a start left whose undoing failed.
	if err := s.clearLeftovers(ctx, id); err != nil {
		return fmt.Errorf("container %s: what an earlier start left: %w", id, err)
	}
	l := newLive(id)
	err = s.Steps.Run(ctx, steps.StartContainer, id, s.startSteps(c, l)...)
	if refused := new(startError); errors.As(err, &refused) {
		return errors.Join(err, s.recordRefused(id, refused))
	}
	if err != nil {
		return err
	}
	s.publish(runtime.ContainerEventType_CONTAINER_STARTED_EVENT, c)
	s.Log.Info("container runs", "container", id, "name", c.Config.GetMetadata().GetName(), "sandbox", c.SandboxID)
	s.follow(l) // after the event: the container may have ended already
	return nil
}

// startSteps are the steps of Start; docs/flow/start-container.md says what
// each costs.
func (s *Service) startSteps(c *record.Container, l *live) []steps.Step {
	undo := s.undoStart(c.ID)
	return []steps.Step{
		{Name: "stdio",
			Do: func(ctx context.Context) error {
				if s.Handlers[c.Handler].Supervisor != "" {
					return s.openSupervised(ctx, c, l)
				}
				return s.openStdio(ctx, c, l)
			},
			Undo: func(ctx context.Context) error { return s.dropStdio(ctx, c.ID, l.io) },
		},
		{Name: "task", Undo: undo[1].Undo, Do: func(ctx context.Context) error {
			return s.withImages(ctx, c, func() error { return s.makeTask(ctx, l) })
		}},
		{Name: "start", Do: func(ctx context.Context) error { return refusal(ctx, l.t.Start(ctx)) }},
		{Name: "running",
			Do: func(context.Context) error {
				_, err := s.Store.Containers.Update(c.ID, func(r *record.Container) {
					r.State, r.StartedAt, r.PID = record.ContainerRunning, time.Now(), int(l.t.Pid())
				})
				return err
			},
			Undo: func(context.Context) error {
				_, err := s.Store.Containers.Update(c.ID, func(r *record.Container) {
					r.State, r.StartedAt, r.PID = record.ContainerCreated, time.Time{}, 0
				})
				return err
			},
		},
	}
}

func (s *Service) openStdio(ctx context.Context, c *record.Container, l *live) error {
	io, err := logs.Open(s.stdioOptions(c))
	if err != nil {
		return err
	}
	l.io = io
	err = s.Hold.Keep(ctx, c.ID, io.Outputs()...)
	if errdefs.IsUnavailable(err) {
		s.Log.Warn("the last output of a container would be lost if berth ended now", "container", c.ID, "err", err)
		return nil
	}
	return err
}

func (s *Service) stdioOptions(c *record.Container) logs.Options {
	return logs.Options{
		Dir: s.stdioDir(c.ID), ID: c.ID,
		Stdin: c.Config.GetStdin(), StdinOnce: c.Config.GetStdinOnce(), TTY: c.Config.GetTty(),
		LogPath: c.LogPath, Lost: s.LostOutput, Log: s.Log,
	}
}

func (s *Service) makeTask(ctx context.Context, l *live) error {
	if l.supervisor != "" {
		task, err := s.join(ctx, l)
		if err != nil {
			return refusal(ctx, err)
		}
		l.t = task
		s.keep(l)
		return nil
	}
	c, err := s.client.LoadContainer(ctx, l.id)
	if err != nil {
		return err
	}
	io := l.io.(*logs.IO)
	l.t, err = c.NewTask(ctx, func(string) (cio.IO, error) { return fifos(io.Config()) })
	if err != nil {
		return refusal(ctx, err)
	}
	io.Running()
	return nil
}

// fifos names FIFOs; it opens none.
func fifos(c logs.Config) (cio.IO, error) { return cio.Load(cio.NewFIFOSet(cio.Config(c), nil)) }

// recordRefused records a container that could not be started. Its end shows
// why, as a kubelet's user will look for it there.
func (s *Service) recordRefused(id string, refused *startError) error {
	now := time.Now()
	c, err := s.Store.Containers.Update(id, func(r *record.Container) {
		r.State, r.StartedAt, r.FinishedAt = record.ContainerExited, now, now
		r.ExitCode, r.Reason, r.Message = startExitCode, "StartError", refused.Error()
	})
	if err != nil {
		return err
	}
	s.publish(runtime.ContainerEventType_CONTAINER_STOPPED_EVENT, c)
	return nil
}

// loadTask finds the task of a container, for one that runs since before this
// daemon.
func (s *Service) loadTask(ctx context.Context, id string) (containerd.Task, error) {
	c, err := s.client.LoadContainer(ctx, id)
	if err != nil {
		return nil, err
	}
	return c.Task(ctx, nil)
}
