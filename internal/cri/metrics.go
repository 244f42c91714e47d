package cri

import (
	"cmp"
	"context"
	goruntime "runtime"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/record"
	"berth/internal/spec"
	"berth/internal/stats"
)

// ListMetricDescriptors implements the CRI.
func (s *Server) ListMetricDescriptors(context.Context, *runtime.ListMetricDescriptorsRequest) (*runtime.ListMetricDescriptorsResponse, error) {
	return &runtime.ListMetricDescriptorsResponse{Descriptors: stats.Descriptors()}, nil
}

// ListPodSandboxMetrics implements the CRI: those of pods that are ready, and
// of their containers that run.
func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *runtime.ListPodSandboxMetricsRequest) (*runtime.ListPodSandboxMetricsResponse, error) {
	list, err := s.podMetrics(ctx)
	if err != nil {
		return nil, err
	}
	return &runtime.ListPodSandboxMetricsResponse{PodMetrics: list}, nil
}

// podMetrics reads pods side by side, as many as there are processors.
func (s *Server) podMetrics(ctx context.Context) ([]*runtime.PodSandboxMetrics, error) {
	running := map[string][]*record.Container{}
	for _, c := range s.Store.Containers.List() {
		if c.State == record.ContainerRunning {
			running[c.SandboxID] = append(running[c.SandboxID], c)
		}
	}
	boxes := slices.DeleteFunc(s.Store.Sandboxes.List(), func(box *record.Sandbox) bool { return box.State != record.SandboxReady })
	fs, err := s.Stats.FileSystemOf(s.FSPath)
	if err != nil {
		return nil, err
	}
	list := make([]*runtime.PodSandboxMetrics, len(boxes))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(goruntime.GOMAXPROCS(0))
	for i, box := range boxes {
		group.Go(func() error {
			list[i] = s.metricsOf(ctx, box, running[box.ID], fs)
			return ctx.Err()
		})
	}
	return list, group.Wait()
}

// metricsOf leaves out what cannot be read now: an error in one pod is not to
// hide the others of the node.
func (s *Server) metricsOf(ctx context.Context, box *record.Sandbox, running []*record.Container, fs stats.FileSystem) *runtime.PodSandboxMetrics {
	cgroup := stats.Cgroup{ID: box.ID, Path: s.podCgroup(box)}
	sheet := stats.NewSheet(stats.Labels{
		Cgroup: cgroup.Path, ID: box.ID, Pod: box.Config.GetMetadata().GetName(), Namespace: box.Config.GetMetadata().GetNamespace(),
	})
	if err := s.Stats.AddPod(sheet, cgroup, cgroupsOf(running)); err != nil && !errdefs.IsNotFound(err) {
		s.Log.Debug("metrics without some of the cgroup's", "sandbox", box.ID, "err", err)
	}
	if !spec.HostNetwork(box.Config) {
		if err := s.Stats.AddNetwork(sheet, s.Paths.Namespace(box.ID, "net")); err != nil && !errdefs.IsNotFound(err) {
			s.Log.Debug("metrics without the network's", "sandbox", box.ID, "err", err)
		}
	}
	one := &runtime.PodSandboxMetrics{PodSandboxId: box.ID}
	sheet.Pod(one)
	slices.SortFunc(running, func(a, b *record.Container) int { return cmp.Compare(a.ID, b.ID) })
	for _, c := range running {
		if m := s.containerMetrics(ctx, box, c, fs); m != nil {
			one.ContainerMetrics = append(one.ContainerMetrics, m)
		}
	}
	return one
}

// containerMetrics is nil for a container that has ended or was removed
// meanwhile.
func (s *Server) containerMetrics(ctx context.Context, box *record.Sandbox, c *record.Container, fs stats.FileSystem) *runtime.ContainerMetrics {
	image := c.Config.GetImage().GetUserSpecifiedImage()
	if image == "" {
		image = c.ImageName
	}
	pod := box.Config.GetMetadata()
	sheet := stats.NewSheet(stats.Labels{
		Cgroup: c.Cgroup, ID: c.ID, Image: image, Pod: pod.GetName(), Namespace: pod.GetNamespace(), Container: c.Config.GetMetadata().GetName(),
	})
	resources, err := c.Resources()
	if err != nil {
		s.Log.Debug("metrics without the container's resources", "container", c.ID, "err", err)
	}
	err = s.Stats.AddContainer(sheet, stats.Cgroup{ID: c.ID, Path: c.Cgroup}, resources.GetCpuQuota() > 0)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		s.Log.Debug("metrics without some of the cgroup's", "container", c.ID, "err", err)
	}
	sheet.AddSpec(stats.Spec{Created: c.CreatedAt, Started: c.StartedAt, Resources: resources})
	layer, err := s.Containers.LastLayerUsage(ctx, c)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		s.Log.Debug("metrics without the file system's", "container", c.ID, "err", err)
	} else {
		sheet.AddFileSystem(fs, uint64(layer.Size), layer.At)
	}
	one := &runtime.ContainerMetrics{ContainerId: c.ID}
	sheet.Container(one)
	return one
}

func cgroupsOf(containers []*record.Container) []stats.Cgroup {
	list := make([]stats.Cgroup, len(containers))
	for i, c := range containers {
		list[i] = stats.Cgroup{ID: c.ID, Path: c.Cgroup}
	}
	return list
}
