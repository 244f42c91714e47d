package sandbox

import (
	"context"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/steps"
)

// Remove stops the sandbox if need be, removes its containers and all that it
// had, its record last. One that is not there is no error.
func (s *Service) Remove(ctx context.Context, id string) error {
	box, err := s.Store.Sandboxes.Resolve(id)
	if notFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.alone(ctx, "removal of sandbox ", box.ID, func(ctx context.Context, id string) error {
		if err := s.stop(ctx, id); err != nil {
			return err
		}
		return s.remove(ctx, id)
	})
}

func (s *Service) remove(ctx context.Context, id string) error {
	box, err := s.Store.Sandboxes.Get(id)
	if notFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	undo := s.undoOf(id)
	err = s.Steps.Run(ctx, steps.RemovePodSandbox, id,
		steps.Step{Name: "containers", Do: func(ctx context.Context) error { return s.Containers.RemoveAll(ctx, id) }},
		steps.Step{Name: "cgroup", Do: undo["cgroup"]},
		steps.Step{Name: "directories", Do: undo["directories"]},
		steps.Step{Name: "record", Do: undo["record"]},
	)
	if err != nil {
		return err
	}
	s.Events.Publish(runtime.ContainerEventType_CONTAINER_DELETED_EVENT, id, box)
	s.Log.Info("pod is removed", "sandbox", id)
	return nil
}
