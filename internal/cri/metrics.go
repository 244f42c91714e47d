package cri

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
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
	// As many bytes as the last time, and some more.
	last := s.metricBytes.Load()
	wire := make([]byte, 0, last+last/8)
	err := s.eachPodMetrics(ctx, func(one []byte) error {
		wire = appendListed(wire, one)
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.metricBytes.Store(int64(len(wire)))
	resp := new(runtime.ListPodSandboxMetricsResponse)
	resp.ProtoReflect().SetUnknown(wire)
	return resp, nil
}

// StreamPodSandboxMetrics implements the CRI. What is read is sent on before all
// is.
func (s *Server) StreamPodSandboxMetrics(_ *runtime.StreamPodSandboxMetricsRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxMetricsResponse]) error {
	var wire []byte
	send := func() error {
		resp := new(runtime.StreamPodSandboxMetricsResponse)
		resp.ProtoReflect().SetUnknown(wire)
		wire = nil // it may not be on its way yet
		return stream.Send(resp)
	}
	err := s.eachPodMetrics(stream.Context(), func(one []byte) (err error) {
		if len(wire) > 0 && len(wire)+len(one) > maxBatch {
			err = send()
		}
		wire = appendListed(wire, one)
		return err
	})
	if err == nil && len(wire) > 0 {
		err = send()
	}
	return err
}

// podSheet is the memory that the metrics of one pod are collected in.
type podSheet struct {
	sheet            stats.Sheet
	containers, wire []byte
}

var podSheets = sync.Pool{New: func() any { return new(podSheet) }}

// eachPodMetrics calls give with the PodSandboxMetrics of each pod, encoded, one
// after another. give keeps nothing of it.
func (s *Server) eachPodMetrics(ctx context.Context, give func([]byte) error) error {
	running := s.runningBySandbox()
	boxes := slices.DeleteFunc(s.Store.Sandboxes.List(), func(box *record.Sandbox) bool { return box.State != record.SandboxReady })
	fs, err := s.Stats.FileSystemOf(s.FSPath)
	if err != nil {
		return err
	}
	read := func(ctx context.Context, box *record.Sandbox) (*podSheet, error) {
		one := podSheets.Get().(*podSheet)
		s.collectPod(ctx, one, box, running[box.ID], fs)
		return one, ctx.Err()
	}
	return sideBySide(ctx, boxes, read, func(one *podSheet) error {
		defer podSheets.Put(one)
		return give(one.wire)
	})
}

// collectPod leaves out what cannot be read now: an error in one pod is not to
// hide the others of the node.
func (s *Server) collectPod(ctx context.Context, into *podSheet, box *record.Sandbox, running []*record.Container, fs stats.FileSystem) {
	slices.SortFunc(running, func(a, b *record.Container) int { return cmp.Compare(a.ID, b.ID) })
	var counts []stats.Count
	into.containers = into.containers[:0]
	for _, c := range running {
		if n, ok := s.collectContainer(ctx, &into.sheet, box, c, fs); ok {
			into.containers = into.sheet.AppendContainer(into.containers, c.ID)
			counts = append(counts, n)
		}
	}
	cgroup := stats.Cgroup{ID: box.ID, Path: s.podCgroup(box)}
	into.sheet.Begin(stats.Labels{
		Cgroup: cgroup.Path, ID: box.ID, Pod: box.Config.GetMetadata().GetName(), Namespace: box.Config.GetMetadata().GetNamespace(),
	})
	if err := s.Stats.AddPod(&into.sheet, cgroup, counts); err != nil && !errdefs.IsNotFound(err) {
		s.Log.Debug("metrics without some of the cgroup's", "sandbox", box.ID, "err", err)
	}
	if !spec.HostNetwork(box.Config) {
		if err := s.Stats.AddNetwork(&into.sheet, s.Paths.Namespace(box.ID, "net")); err != nil && !errdefs.IsNotFound(err) {
			s.Log.Debug("metrics without the network's", "sandbox", box.ID, "err", err)
		}
	}
	into.wire = into.sheet.AppendPod(into.wire[:0], box.ID, into.containers)
}

// collectContainer is false for a container that has ended or was removed
// meanwhile.
func (s *Server) collectContainer(ctx context.Context, sheet *stats.Sheet, box *record.Sandbox, c *record.Container, fs stats.FileSystem) (stats.Count, bool) {
	image := c.Config.GetImage().GetUserSpecifiedImage()
	if image == "" {
		image = c.ImageName
	}
	pod := box.Config.GetMetadata()
	sheet.Begin(stats.Labels{
		Cgroup: c.Cgroup, ID: c.ID, Image: image, Pod: pod.GetName(), Namespace: pod.GetNamespace(), Container: c.Config.GetMetadata().GetName(),
	})
	resources, err := c.Resources()
	if err != nil {
		s.Log.Debug("metrics without the container's resources", "container", c.ID, "err", err)
	}
	n, err := s.Stats.AddContainer(sheet, stats.Cgroup{ID: c.ID, Path: c.Cgroup}, resources.GetCpuQuota() > 0)
	if errdefs.IsNotFound(err) {
		return n, false
	}
	if err != nil {
		s.Log.Debug("metrics without some of the cgroup's", "container", c.ID, "err", err)
	}
	sheet.AddSpec(stats.Spec{Created: c.CreatedAt, Started: c.StartedAt, Resources: resources})
	layer, err := s.Containers.LastLayerUsage(ctx, c, layerAgeMetric)
	if errdefs.IsNotFound(err) {
		return n, false
	}
	if err != nil {
		s.Log.Debug("metrics without the file system's", "container", c.ID, "err", err)
	} else {
		sheet.AddFileSystem(fs, uint64(layer.Size), layer.At)
	}
	return n, true
}
