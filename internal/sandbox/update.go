package sandbox

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/record"
)

// UpdateResources notes what a pod may use from now on; nil leaves a part as it
// was. A caller that made the pod's cgroup has changed it before; one that
// berth made is limited anew. ErrNotFound.
func (s *Service) UpdateResources(ctx context.Context, id string, overhead, resources *runtime.LinuxContainerResources) error {
	release, err := s.slots.Acquire(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	box, err := s.Store.Sandboxes.Get(id)
	if err != nil {
		return err
	}
	config := proto.CloneOf(box.Config)
	if config.Linux == nil {
		config.Linux = &runtime.LinuxPodSandboxConfig{}
	}
	if overhead != nil {
		config.Linux.Overhead = overhead
	}
	if resources != nil {
		config.Linux.Resources = resources
	}
	if box.OwnCgroup && box.CgroupParent != "" { // the kernel says first whether it takes them
		if err := s.Cgroups.Limit(box.CgroupParent, limits(config)); err != nil {
			return fmt.Errorf("resources of sandbox %s: %w", id, err)
		}
	}
	_, err = s.Store.Sandboxes.Update(id, func(b *record.Sandbox) { b.Config = config })
	return err
}
