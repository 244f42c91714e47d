package podrun

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
	"berth/internal/manifest"
)

const (
	// defaultGrace is for containers that do not say.
	defaultGrace = 30 * time.Second
	// leastSidecarGrace is what a sidecar gets even where the others used up
	// the pod's grace period.
	leastSidecarGrace = 2 * time.Second
)

// Stop ends a pod's containers side by side, its sidecars after them, the last
// started first, and then the sandbox. grace, where not nil, replaces what the
// containers ask for.
func Stop(ctx context.Context, cl *client.Client, pod *runtime.PodSandbox, grace *time.Duration) error {
	containers, err := containersOf(ctx, cl, pod)
	if err != nil {
		return err
	}
	var main, sidecars []*runtime.Container
	for _, c := range containers {
		switch {
		case c.State == runtime.ContainerState_CONTAINER_EXITED:
		case c.Annotations[manifest.AnnotationSidecar] != "":
			sidecars = append(sidecars, c)
		default:
			main = append(main, c)
		}
	}
	begin := time.Now()
	group, groupCtx := errgroup.WithContext(ctx)
	for _, c := range main {
		group.Go(func() error { return stopContainer(groupCtx, cl, c, Grace(c, grace)) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	slices.SortStableFunc(sidecars, func(a, b *runtime.Container) int { return cmp.Compare(b.CreatedAt, a.CreatedAt) })
	for _, c := range sidecars {
		left := Grace(c, grace)
		if grace == nil {
			left = max(left-time.Since(begin), leastSidecarGrace)
		}
		if err := stopContainer(ctx, cl, c, left); err != nil {
			return err
		}
	}
	if _, err := cl.Runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: pod.Id}); err != nil {
		return fmt.Errorf("stop pod %s: %w", client.PodName(pod.Metadata), err)
	}
	return nil
}

// Grace is the time a container has between SIGTERM and SIGKILL: given, else
// its own.
func Grace(c *runtime.Container, given *time.Duration) time.Duration {
	if given != nil {
		return *given
	}
	seconds, err := strconv.ParseInt(c.Annotations[manifest.AnnotationGrace], 10, 32)
	if err != nil || seconds < 0 {
		return defaultGrace
	}
	return time.Duration(seconds) * time.Second
}

func stopContainer(ctx context.Context, cl *client.Client, c *runtime.Container, grace time.Duration) error {
	seconds := int64((grace + time.Second - 1) / time.Second)
	if _, err := cl.Runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: c.Id, Timeout: seconds}); err != nil {
		return fmt.Errorf("stop container %s: %w", c.GetMetadata().GetName(), err)
	}
	return nil
}

func containersOf(ctx context.Context, cl *client.Client, pod *runtime.PodSandbox) ([]*runtime.Container, error) {
	resp, err := cl.Runtime.ListContainers(ctx, &runtime.ListContainersRequest{Filter: &runtime.ContainerFilter{PodSandboxId: pod.Id}})
	return resp.GetContainers(), err
}
