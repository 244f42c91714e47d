package container

import (
	"context"
	"errors"
	"fmt"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/record"
	"berth/internal/spec"
)

// UpdateResources puts those of r that are set into force: in the cgroup of a
// container that runs, and in the spec that a created one will start with.
//
// Errors: ErrNotFound; ErrFailedPrecondition for a container that has ended;
// what the kernel refuses is ErrInvalidArgument.
func (s *Service) UpdateResources(ctx context.Context, id string, r *runtime.LinuxContainerResources) error {
	c, err := s.find(id)
	if err != nil {
		return err
	}
	release, err := s.slots.Acquire(ctx, c.ID)
	if err != nil {
		return err
	}
	defer release()
	if c, err = s.Store.Containers.Get(c.ID); err != nil {
		return err
	}
	if c.State == record.ContainerExited {
		return fmt.Errorf("container %s has ended; its resources cannot be changed: %w", c.ID, errdefs.ErrFailedPrecondition)
	}
	if err := s.updateResources(s.Engine.Context(ctx), c, r); err != nil {
		return fmt.Errorf("resources of container %s: %w", c.ID, err)
	}
	return nil
}

func (s *Service) updateResources(ctx context.Context, c *record.Container, r *runtime.LinuxContainerResources) error {
	container, err := s.client.LoadContainer(ctx, c.ID)
	if err != nil {
		return err
	}
	current, err := container.Spec(ctx)
	if err != nil {
		return err
	}
	want, warnings, err := spec.ResourcesUpdate(current.Linux.Resources, r, s.Kernel)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		s.Log.Warn("resources differ from what was asked for", "container", c.ID, "warning", w)
	}
	old := current.Linux.Resources
	// The kernel says first whether it takes them.
	if err := s.applyResources(ctx, c, want); err != nil {
		if refused(ctx, err) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		return err
	}
	current.Linux.Resources = want
	if err := s.recordResources(ctx, container, current); err != nil {
		return errors.Join(err, s.applyResources(context.WithoutCancel(ctx), c, old))
	}
	return nil
}

// applyResources puts resources into force in a container that runs.
func (s *Service) applyResources(ctx context.Context, c *record.Container, r *specs.LinuxResources) error {
	l := s.liveOf(c.ID)
	if l == nil || c.State != record.ContainerRunning {
		return nil
	}
	task, err := l.task()
	if err != nil {
		return err
	}
	return task.Update(ctx, containerd.WithResources(r))
}

// recordResources writes the spec with other resources, and those in force.
func (s *Service) recordResources(ctx context.Context, container containerd.Container, made *oci.Spec) error {
	body, err := typeurl.MarshalAny(made)
	if err != nil {
		return err
	}
	inForce, err := proto.Marshal(spec.ResourcesStatus(made))
	if err != nil {
		return err
	}
	if err := container.Update(ctx, func(_ context.Context, _ *containerd.Client, rec *containers.Container) error {
		rec.Spec = body
		return nil
	}); err != nil {
		return err
	}
	_, err = s.Store.Containers.Update(container.ID(), func(r *record.Container) { r.InForce = inForce })
	return err
}

// ReopenLog opens the log file again after the kubelet has renamed it.
func (s *Service) ReopenLog(id string) error {
	c, l, err := s.running(id)
	if err != nil {
		return err
	}
	if l.io == nil {
		return fmt.Errorf("log of container %s could not be taken up after a restart of berth: %w", c.ID, errdefs.ErrUnavailable)
	}
	return l.io.Reopen()
}

// Spec is the OCI spec that the container was made with, as updated since.
func (s *Service) Spec(ctx context.Context, id string) (*oci.Spec, error) {
	ctx = s.Engine.Context(ctx)
	container, err := s.client.LoadContainer(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("spec of container %s: %w", id, err)
	}
	return container.Spec(ctx)
}
