package sandbox

import (
	"context"
	"fmt"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/host"
	"berth/internal/record"
	"berth/internal/steps"
)

// Stop ends the sandbox's containers and gives back its address and
// namespaces. A sandbox that is stopped, or was never there, is no error.
func (s *Service) Stop(ctx context.Context, id string) error {
	box, err := s.Store.Sandboxes.Resolve(id)
	if notFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.alone(ctx, "stop of sandbox ", box.ID, s.stop)
}

// alone does work on a sandbox, whose slot it holds; who asks for the same work
// meanwhile joins it.
func (s *Service) alone(ctx context.Context, what, id string, work func(context.Context, string) error) error {
	_, err := s.flights.Do(ctx, what+id, func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, opTimeout)
		defer cancel()
		release, err := s.slots.Acquire(ctx, id)
		if err != nil {
			return "", err
		}
		defer release()
		return "", work(ctx, id)
	})
	return err
}

// stop does the stopping; the caller holds the sandbox's slot.
func (s *Service) stop(ctx context.Context, id string) error {
	box, err := s.Store.Sandboxes.Get(id)
	if notFound(err) || err == nil && box.State == record.SandboxStopped {
		return nil
	}
	if err != nil {
		return err
	}
	undo := s.undoOf(id)
	list := []steps.Step{
		// From here on the sandbox is not ready, and takes no new container.
		{Name: "record", Do: func(context.Context) error { return s.setState(id, record.SandboxStopping) }},
		{Name: "containers", Do: func(ctx context.Context) error { return s.Containers.StopAll(ctx, id) }},
	}
	if box.Pause {
		list = append(list, steps.Step{Name: "pause", Do: undo["pause"]})
	}
	return s.Steps.Run(ctx, steps.StopPodSandbox, id, append(list,
		steps.Step{Name: "network", Do: undo["network"]},
		steps.Step{Name: "init", Do: undo["init"]},
		steps.Step{Name: "namespaces", Do: undo["namespaces"]},
		steps.Step{Name: "shm", Do: func(context.Context) error { return host.Unmount(s.Paths.Shm(id)) }},
		steps.Step{Name: "stopped", Do: func(context.Context) error {
			if err := s.setState(id, record.SandboxStopped); err != nil {
				return err
			}
			s.Events.Publish(runtime.ContainerEventType_CONTAINER_STOPPED_EVENT, id, s.recordOr(id))
			s.Log.Info("pod is stopped", "sandbox", id)
			return nil
		}},
	)...)
}

func (s *Service) setState(id string, state record.SandboxState) error {
	_, err := s.Store.Sandboxes.Update(id, func(b *record.Sandbox) { b.State = state })
	return err
}

// watch follows the init of a shared PID namespace: without it the pod's
// containers are dead and no new one can start, so the sandbox is not ready.
func (s *Service) watch(box *record.Sandbox) {
	if box.Init == nil {
		return
	}
	s.wg.Go(func() {
		p := host.Process{PID: box.Init.PID, Start: box.Init.Start}
		if p.Wait(s.base) != nil {
			return // the daemon stops
		}
		lost := false
		_, err := s.Store.Sandboxes.Update(box.ID, func(b *record.Sandbox) {
			if lost = b.State == record.SandboxReady; lost {
				b.State = record.SandboxStopping
			}
		})
		if err != nil && !notFound(err) {
			s.Log.Error("sandbox whose init ended is not marked", "sandbox", box.ID, "err", err)
		}
		if lost {
			s.Log.Warn("the init of the pod's PID namespace ended; the pod is no longer ready", "sandbox", box.ID, "pid", p.PID)
			s.Events.Publish(runtime.ContainerEventType_CONTAINER_STOPPED_EVENT, box.ID, s.recordOr(box.ID))
		}
	})
}

// Resume takes up a ready sandbox after a restart of the daemon: it is watched
// again, or marked as not ready where what it needs is gone, as after a reboot.
func (s *Service) Resume(box *record.Sandbox) error {
	missing := s.missing(box)
	if missing == "" {
		s.watch(box)
		return nil
	}
	s.Log.Warn("a pod is no longer ready", "sandbox", box.ID, "missing", missing)
	if err := s.setState(box.ID, record.SandboxStopping); err != nil {
		return fmt.Errorf("sandbox %s: %w", box.ID, err)
	}
	return nil
}
