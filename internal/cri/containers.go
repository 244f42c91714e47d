package cri

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/container"
	"berth/internal/record"
)

// CreateContainer implements the CRI. The configuration of the sandbox counts
// as it was when the sandbox was run.
func (s *Server) CreateContainer(ctx context.Context, req *runtime.CreateContainerRequest) (*runtime.CreateContainerResponse, error) {
	box, err := s.box(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if err := validateContainerConfig(req.GetConfig(), box.Config); err != nil {
		return nil, err
	}
	id, err := s.Containers.Create(ctx, box.ID, req.GetConfig())
	if err != nil {
		return nil, err
	}
	return &runtime.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer implements the CRI.
func (s *Server) StartContainer(ctx context.Context, req *runtime.StartContainerRequest) (*runtime.StartContainerResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtime.StartContainerResponse{}, s.Containers.Start(ctx, req.GetContainerId())
}

// StopContainer implements the CRI.
func (s *Server) StopContainer(ctx context.Context, req *runtime.StopContainerRequest) (*runtime.StopContainerResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if req.GetTimeout() < 0 {
		return nil, invalid("timeout", "%d: it is a number of seconds, 0 or more", req.GetTimeout())
	}
	return &runtime.StopContainerResponse{}, s.Containers.Stop(ctx, req.GetContainerId(), seconds(req.GetTimeout()))
}

// seconds is a duration, the longest there is for what is too many.
func seconds(n int64) time.Duration {
	if n > int64(math.MaxInt64/time.Second) {
		return math.MaxInt64
	}
	return time.Duration(n) * time.Second
}

// RemoveContainer implements the CRI.
func (s *Server) RemoveContainer(ctx context.Context, req *runtime.RemoveContainerRequest) (*runtime.RemoveContainerResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtime.RemoveContainerResponse{}, s.Containers.Remove(ctx, req.GetContainerId())
}

// ListContainers implements the CRI.
func (s *Server) ListContainers(_ context.Context, req *runtime.ListContainersRequest) (*runtime.ListContainersResponse, error) {
	list, err := s.listContainers(req.GetFilter())
	if err != nil {
		return nil, err
	}
	resp := new(runtime.ListContainersResponse)
	fill(resp, list)
	return resp, nil
}

// selected applies the parts that filters of containers share; IDs may be
// prefixes.
func selected(c *record.Container, id, sandboxID string, labels map[string]string) bool {
	return strings.HasPrefix(c.ID, id) && strings.HasPrefix(c.SandboxID, sandboxID) && matches(c.Config.GetLabels(), labels)
}

// ContainerStatus implements the CRI.
func (s *Server) ContainerStatus(ctx context.Context, req *runtime.ContainerStatusRequest) (*runtime.ContainerStatusResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	status, err := container.Status(c)
	if err != nil {
		return nil, err
	}
	resp := &runtime.ContainerStatusResponse{Status: status}
	if req.GetVerbose() {
		resp.Info, err = s.containerInfo(ctx, c)
	}
	return resp, err
}

// container resolves the ID of a container that clients are told of.
func (s *Server) container(id string) (*record.Container, error) {
	if err := required("container_id", id); err != nil {
		return nil, err
	}
	c, err := s.Store.Containers.Resolve(id)
	if err == nil && !container.Shown(c) {
		err = fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	return c, err
}

// containerInfo has the keys that users of crictl know.
func (s *Server) containerInfo(ctx context.Context, c *record.Container) (map[string]string, error) {
	oci, err := s.Containers.Spec(ctx, c.ID)
	if err != nil {
		return nil, err
	}
	return info(map[string]any{"info": map[string]any{
		"sandboxID": c.SandboxID, "pid": c.PID, "runtimeHandler": c.Handler, "cgroup": c.Cgroup,
		"snapshotter": c.Snapshotter, "snapshotKey": c.ID, "config": c.Config, "runtimeSpec": oci,
	}})
}

// UpdateContainerResources implements the CRI.
func (s *Server) UpdateContainerResources(ctx context.Context, req *runtime.UpdateContainerResourcesRequest) (*runtime.UpdateContainerResourcesResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if req.GetLinux() == nil {
		return nil, invalid("linux", "it is required: it holds the resources to change")
	}
	if err := validateResources("linux", req.GetLinux()); err != nil {
		return nil, err
	}
	return &runtime.UpdateContainerResourcesResponse{}, s.Containers.UpdateResources(ctx, req.GetContainerId(), req.GetLinux())
}

// ReopenContainerLog implements the CRI.
func (s *Server) ReopenContainerLog(_ context.Context, req *runtime.ReopenContainerLogRequest) (*runtime.ReopenContainerLogResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtime.ReopenContainerLogResponse{}, s.Containers.ReopenLog(req.GetContainerId())
}

// CheckpointContainer implements the CRI.
func (s *Server) CheckpointContainer(_ context.Context, req *runtime.CheckpointContainerRequest) (*runtime.CheckpointContainerResponse, error) {
	return nil, fmt.Errorf("CheckpointContainer: berth makes no checkpoints, which take CRIU; container %s runs on: %w", req.ContainerId, errdefs.ErrNotImplemented)
}
