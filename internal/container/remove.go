package container

import (
	"context"
	"errors"
	"os"
	"sync"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/record"
	"berth/internal/steps"
)

// Remove removes the container, ending it first if it runs, with all that it
// had, its record last. One that is not there is no error. Its log stays.
func (s *Service) Remove(ctx context.Context, id string) error {
	c, err := s.Store.Containers.Resolve(id)
	if notFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = s.flights.Do(ctx, "removal of container "+c.ID, func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, opTimeout)
		defer cancel()
		return "", s.remove(ctx, c.ID)
	})
	return err
}

func (s *Service) remove(ctx context.Context, id string) error {
	release, err := s.slots.Acquire(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	c, err := s.Store.Containers.Get(id)
	if err != nil {
		return ignoreGone(err)
	}
	if err := s.Steps.Run(ctx, steps.RemoveContainer, id, s.removeSteps(c)...); err != nil {
		return err
	}
	s.usage.forget(id)
	s.publish(runtime.ContainerEventType_CONTAINER_DELETED_EVENT, c)
	s.Log.Info("container is removed", "container", id)
	return nil
}

func (s *Service) removeSteps(c *record.Container) []steps.Step {
	id := c.ID
	undo := s.undoCreate(id)
	list := []steps.Step{
		{Name: "kill", Do: func(ctx context.Context) error { return s.end(ctx, id) }},
		{Name: "task", Do: func(ctx context.Context) error { return s.clearLeftovers(ctx, id) }},
		{Name: "container", Do: undo["container"]},
	}
	if len(c.ImageVolumes) > 0 {
		list = append(list, steps.Step{Name: "images", Do: undo["images"]})
	}
	return append(list, steps.Step{Name: "directories", Do: undo["directories"]}, steps.Step{Name: "record", Do: undo["record"]})
}

// end kills the container if it runs and waits until it has given back what it
// held.
func (s *Service) end(ctx context.Context, id string) error {
	l := s.liveOf(id)
	if l == nil {
		return nil
	}
	if err := s.kill(ctx, l); err != nil {
		return err
	}
	select {
	case <-l.gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// clearLeftovers removes the task and stdio where their follower could not.
// Their directories tell; a container without them has neither.
func (s *Service) clearLeftovers(ctx context.Context, id string) error {
	_, err := os.Lstat(s.stdioDir(id))
	if errors.Is(err, os.ErrNotExist) && !s.Cgroups.Exists(s.cgroupOf(id)) {
		return nil
	}
	return errors.Join(s.clearTask(ctx, id), s.dropStdio(ctx, id, nil))
}

// RemoveAll removes every container of a sandbox, side by side, and returns
// what went wrong with each.
func (s *Service) RemoveAll(ctx context.Context, sandboxID string) error {
	var wg sync.WaitGroup
	all := s.of(sandboxID)
	errs := make([]error, len(all))
	for i, c := range all {
		wg.Go(func() { errs[i] = s.Remove(ctx, c.ID) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
