package cri

import (
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/container"
	"berth/internal/record"
	"berth/internal/spec"
	"berth/internal/stats"
)

// How old the size of a writable layer may be, in statistics and in metrics.
// Kubelets ask for statistics every ten seconds and would wait each time for
// files to be walked; so they get what the walk that they began the last time has
// found. It bears its time.
const (
	layerAge       = 20 * time.Second
	layerAgeMetric = 2 * time.Minute
)

// ContainerStats implements the CRI.
func (s *Server) ContainerStats(ctx context.Context, req *runtime.ContainerStatsRequest) (*runtime.ContainerStatsResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	one, err := s.containerStats(ctx, c)
	if err != nil {
		return nil, err
	}
	return &runtime.ContainerStatsResponse{Stats: one}, nil
}

// ListContainerStats implements the CRI: containers that run, unless an ID asks
// for one that does not.
func (s *Server) ListContainerStats(ctx context.Context, req *runtime.ListContainerStatsRequest) (*runtime.ListContainerStatsResponse, error) {
	resp := &runtime.ListContainerStatsResponse{}
	err := s.eachContainerStats(ctx, req.GetFilter(), func(one *runtime.ContainerStats) error {
		resp.Stats = append(resp.Stats, one)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// eachContainerStats calls give for each container that a list has, one after
// another.
func (s *Server) eachContainerStats(ctx context.Context, filter *runtime.ContainerStatsFilter, give func(*runtime.ContainerStats) error) error {
	list := slices.DeleteFunc(s.Store.Containers.List(), func(c *record.Container) bool {
		return c.State != record.ContainerRunning && filter.GetId() == "" || !container.Shown(c) ||
			!selected(c, filter.GetId(), filter.GetPodSandboxId(), filter.GetLabelSelector())
	})
	return sideBySide(ctx, list, s.containerStats, give)
}

// containerStats leaves out what cannot be read now: an error in one container
// is not to hide the others of the node. ErrNotFound: the container is gone.
func (s *Server) containerStats(ctx context.Context, c *record.Container) (*runtime.ContainerStats, error) {
	var used *stats.Usage
	if c.State == record.ContainerRunning {
		var err error
		if used, err = s.used(ctx, c); err != nil && !errdefs.IsNotFound(err) {
			s.Log.Debug("statistics without the cgroup's part", "container", c.ID, "err", err)
		}
	}
	var fs *runtime.FilesystemUsage
	layer, err := s.Containers.LastLayerUsage(ctx, c, layerAge)
	switch {
	case errdefs.IsNotFound(err):
		return nil, err
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		s.Log.Debug("statistics without the file system's part", "container", c.ID, "err", err)
	default:
		fs = &runtime.FilesystemUsage{
			Timestamp: layer.At.UnixNano(), FsId: &runtime.FilesystemIdentifier{Mountpoint: s.FSPath},
			UsedBytes: &runtime.UInt64Value{Value: uint64(layer.Size)}, InodesUsed: &runtime.UInt64Value{Value: uint64(layer.Inodes)},
		}
	}
	return stats.AssembleContainer(
		&runtime.ContainerAttributes{Id: c.ID, Metadata: c.Config.GetMetadata(), Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations()},
		used, fs), nil
}

// statsTimeout bounds the question to a container's shim.
const statsTimeout = 5 * time.Second

// used is what a container that runs uses, from its cgroup or its shim.
func (s *Server) used(ctx context.Context, c *record.Container) (*stats.Usage, error) {
	if !s.Containers.AsksShim(c) {
		return s.Stats.Container(c.ID, c.Cgroup)
	}
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	said, err := s.Containers.Metrics(ctx, c.ID)
	if err != nil {
		return nil, err
	}
	return s.Stats.Shim(c.ID, said, uint64(c.Config.GetLinux().GetResources().GetMemoryLimitInBytes()))
}

// PodSandboxStats implements the CRI.
func (s *Server) PodSandboxStats(ctx context.Context, req *runtime.PodSandboxStatsRequest) (*runtime.PodSandboxStatsResponse, error) {
	box, err := s.box(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	one, err := s.boxStats(ctx, box, s.runningBySandbox()[box.ID])
	if err != nil {
		return nil, err
	}
	return &runtime.PodSandboxStatsResponse{Stats: one}, nil
}

// ListPodSandboxStats implements the CRI: sandboxes that are ready, unless an
// ID asks for one that is not.
func (s *Server) ListPodSandboxStats(ctx context.Context, req *runtime.ListPodSandboxStatsRequest) (*runtime.ListPodSandboxStatsResponse, error) {
	resp := &runtime.ListPodSandboxStatsResponse{}
	err := s.eachBoxStats(ctx, req.GetFilter(), func(one *runtime.PodSandboxStats) error {
		resp.Stats = append(resp.Stats, one)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// eachBoxStats calls give for each sandbox that a list has, one after another.
func (s *Server) eachBoxStats(ctx context.Context, filter *runtime.PodSandboxStatsFilter, give func(*runtime.PodSandboxStats) error) error {
	running := s.runningBySandbox()
	list := slices.DeleteFunc(s.Store.Sandboxes.List(), func(box *record.Sandbox) bool {
		return box.State == record.SandboxCreating || box.State != record.SandboxReady && filter.GetId() == "" ||
			!strings.HasPrefix(box.ID, filter.GetId()) || !matches(box.Config.GetLabels(), filter.GetLabelSelector())
	})
	return sideBySide(ctx, list, func(ctx context.Context, box *record.Sandbox) (*runtime.PodSandboxStats, error) {
		return s.boxStats(ctx, box, running[box.ID])
	}, give)
}

// runningBySandbox are the containers that run.
func (s *Server) runningBySandbox() map[string][]*record.Container {
	running := map[string][]*record.Container{}
	for _, c := range s.Store.Containers.List() {
		if c.State == record.ContainerRunning {
			running[c.SandboxID] = append(running[c.SandboxID], c)
		}
	}
	return running
}

// boxStats leaves out what cannot be read now, as containerStats does.
func (s *Server) boxStats(ctx context.Context, box *record.Sandbox, running []*record.Container) (*runtime.PodSandboxStats, error) {
	var containers []*runtime.ContainerStats
	for _, c := range running {
		one, err := s.containerStats(ctx, c)
		if errdefs.IsNotFound(err) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		containers = append(containers, one)
	}
	var used *stats.Usage
	var network *runtime.NetworkUsage
	var err error
	if box.State == record.SandboxReady {
		counts := make([]stats.Count, len(running))
		for i, c := range running {
			if counts[i], err = s.Stats.Count(stats.Cgroup{ID: c.ID, Path: c.Cgroup}); err != nil {
				s.Log.Debug("processes are counted another way", "container", c.ID, "err", err)
			}
		}
		if used, err = s.Stats.Pod(stats.Cgroup{ID: box.ID, Path: s.podCgroup(box)}, counts); err != nil && !errdefs.IsNotFound(err) {
			s.Log.Debug("statistics without the cgroup's part", "sandbox", box.ID, "err", err)
		}
		if !spec.HostNetwork(box.Config) {
			if network, err = s.Stats.Network(s.Paths.Namespace(box.ID, "net")); err != nil && !errdefs.IsNotFound(err) {
				s.Log.Debug("statistics without the network's part", "sandbox", box.ID, "err", err)
			}
		}
	}
	return stats.AssemblePod(&runtime.PodSandboxAttributes{
		Id: box.ID, Metadata: box.Config.GetMetadata(), Labels: box.Config.GetLabels(), Annotations: box.Config.GetAnnotations(),
	}, used, network, containers), nil
}

// podCgroup is the cgroup of the pod, the parent of those of its containers.
func (s *Server) podCgroup(box *record.Sandbox) string {
	return path.Dir(s.Cgroups.Path(box.CgroupParent, box.ID))
}
