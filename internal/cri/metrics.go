package cri

import (
	"cmp"
	"context"
	"slices"

	"github.com/containerd/errdefs"
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
	resp := &runtime.ListPodSandboxMetricsResponse{}
	err := s.eachPodMetrics(ctx, func(one *runtime.PodSandboxMetrics) error {
		resp.PodMetrics = append(resp.PodMetrics, one)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// eachPodMetrics calls give for each pod, one after another.
func (s *Server) eachPodMetrics(ctx context.Context, give func(*runtime.PodSandboxMetrics) error) error {
	running := s.runningBySandbox()
	boxes := slices.DeleteFunc(s.Store.Sandboxes.List(), func(box *record.Sandbox) bool { return box.State != record.SandboxReady })
	fs, err := s.Stats.FileSystemOf(s.FSPath)
	if err != nil {
		return err
	}
	return sideBySide(ctx, boxes, func(ctx context.Context, box *record.Sandbox) (*runtime.PodSandboxMetrics, error) {
		return s.metricsOf(ctx, box, running[box.ID], fs), ctx.Err()
	}, give)
}

// metricsOf leaves out what cannot be read now: an error in one pod is not to
// hide the others of the node.
func (s *Server) metricsOf(ctx context.Context, box *record.Sandbox, running []*record.Container, fs stats.FileSystem) *runtime.PodSandboxMetrics {
	one := &runtime.PodSandboxMetrics{PodSandboxId: box.ID}
	slices.SortFunc(running, func(a, b *record.Container) int { return cmp.Compare(a.ID, b.ID) })
	var counts []stats.Count
	for _, c := range running {
		if m, n := s.containerMetrics(ctx, box, c, fs); m != nil {
			one.ContainerMetrics, counts = append(one.ContainerMetrics, m), append(counts, n)
		}
	}
	cgroup := stats.Cgroup{ID: box.ID, Path: s.podCgroup(box)}
	sheet := stats.NewSheet(stats.Labels{
		Cgroup: cgroup.Path, ID: box.ID, Pod: box.Config.GetMetadata().GetName(), Namespace: box.Config.GetMetadata().GetNamespace(),
	})
	if err := s.Stats.AddPod(sheet, cgroup, counts); err != nil && !errdefs.IsNotFound(err) {
		s.Log.Debug("metrics without some of the cgroup's", "sandbox", box.ID, "err", err)
	}
	if !spec.HostNetwork(box.Config) {
		if err := s.Stats.AddNetwork(sheet, s.Paths.Namespace(box.ID, "net")); err != nil && !errdefs.IsNotFound(err) {
			s.Log.Debug("metrics without the network's", "sandbox", box.ID, "err", err)
		}
	}
	sheet.Pod(one)
	return one
}

// containerMetrics is nil for a container that has ended or was removed
// meanwhile.
func (s *Server) containerMetrics(ctx context.Context, box *record.Sandbox, c *record.Container, fs stats.FileSystem) (*runtime.ContainerMetrics, stats.Count) {
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
	n, err := s.Stats.AddContainer(sheet, stats.Cgroup{ID: c.ID, Path: c.Cgroup}, resources.GetCpuQuota() > 0)
	if errdefs.IsNotFound(err) {
		return nil, n
	}
	if err != nil {
		s.Log.Debug("metrics without some of the cgroup's", "container", c.ID, "err", err)
	}
	sheet.AddSpec(stats.Spec{Created: c.CreatedAt, Started: c.StartedAt, Resources: resources})
	layer, err := s.Containers.LastLayerUsage(ctx, c)
	if errdefs.IsNotFound(err) {
		return nil, n
	}
	if err != nil {
		s.Log.Debug("metrics without the file system's", "container", c.ID, "err", err)
	} else {
		sheet.AddFileSystem(fs, uint64(layer.Size), layer.At)
	}
	one := &runtime.ContainerMetrics{ContainerId: c.ID}
	sheet.Container(one)
	return one, n
}
