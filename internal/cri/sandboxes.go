package cri

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/container"
	"berth/internal/network"
	"berth/internal/record"
	"berth/internal/sandbox"
	"berth/internal/spec"
)

// RunPodSandbox implements the CRI.
func (s *Server) RunPodSandbox(ctx context.Context, req *runtime.RunPodSandboxRequest) (*runtime.RunPodSandboxResponse, error) {
	if err := validateSandboxConfig(req.GetConfig()); err != nil {
		return nil, err
	}
	id, err := s.Sandboxes.Run(ctx, req)
	if err != nil {
		return nil, err
	}
	return &runtime.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox implements the CRI.
func (s *Server) StopPodSandbox(ctx context.Context, req *runtime.StopPodSandboxRequest) (*runtime.StopPodSandboxResponse, error) {
	if err := required("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtime.StopPodSandboxResponse{}, s.Sandboxes.Stop(ctx, req.GetPodSandboxId())
}

// RemovePodSandbox implements the CRI.
func (s *Server) RemovePodSandbox(ctx context.Context, req *runtime.RemovePodSandboxRequest) (*runtime.RemovePodSandboxResponse, error) {
	if err := required("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtime.RemovePodSandboxResponse{}, s.Sandboxes.Remove(ctx, req.GetPodSandboxId())
}

// PodSandboxStatus implements the CRI.
func (s *Server) PodSandboxStatus(ctx context.Context, req *runtime.PodSandboxStatusRequest) (*runtime.PodSandboxStatusResponse, error) {
	box, err := s.box(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	containers, err := s.statuses(box.ID)
	if err != nil {
		return nil, err
	}
	// No timestamp: a kubelet with the feature EventedPLEG that gets one knows
	// none of these containers as the sandbox's own (its GetPodStatus leaves
	// ActiveContainerStatuses empty), and starts the pod's first init container
	// again and again. Without it, it asks for each container's status.
	resp := &runtime.PodSandboxStatusResponse{Status: sandbox.Status(box), ContainersStatuses: containers}
	if req.GetVerbose() {
		resp.Info, err = info(map[string]any{"info": s.boxInfo(ctx, box)})
	}
	return resp, err
}

// UpdatePodSandboxResources implements the CRI.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, req *runtime.UpdatePodSandboxResourcesRequest) (*runtime.UpdatePodSandboxResourcesResponse, error) {
	box, err := s.box(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	for field, r := range map[string]*runtime.LinuxContainerResources{"overhead": req.GetOverhead(), "resources": req.GetResources()} {
		if err := validateResources(field, r); err != nil {
			return nil, err
		}
	}
	return &runtime.UpdatePodSandboxResourcesResponse{}, s.Sandboxes.UpdateResources(ctx, box.ID, req.GetOverhead(), req.GetResources())
}

// box resolves the ID of a sandbox that clients are told of.
func (s *Server) box(id string) (*record.Sandbox, error) {
	if err := required("pod_sandbox_id", id); err != nil {
		return nil, err
	}
	box, err := s.Store.Sandboxes.Resolve(id)
	if err == nil && !sandbox.Shown(box) {
		err = fmt.Errorf("sandbox %s: %w", id, errdefs.ErrNotFound)
	}
	return box, err
}

// statuses are those of a sandbox's containers.
func (s *Server) statuses(sandboxID string) ([]*runtime.ContainerStatus, error) {
	var list []*runtime.ContainerStatus
	for _, c := range s.Store.Containers.List() {
		if c.SandboxID != sandboxID || !container.Shown(c) {
			continue
		}
		status, err := container.Status(c)
		if err != nil {
			return nil, err
		}
		list = append(list, status)
	}
	slices.SortFunc(list, func(a, b *runtime.ContainerStatus) int { return cmp.Compare(a.CreatedAt, b.CreatedAt) })
	return list, nil
}

// boxInfo has the keys that users of crictl know.
func (s *Server) boxInfo(ctx context.Context, box *record.Sandbox) map[string]any {
	namespaces := []map[string]string{}
	put := func(kind, path string) {
		namespaces = append(namespaces, map[string]string{"type": kind, "path": path})
	}
	add := func(kind, pin string) { put(kind, s.Paths.Namespace(box.ID, pin)) }
	if !spec.HostNetwork(box.Config) {
		add("network", "net")
		add("uts", "uts")
	}
	if !spec.HostIPC(box.Config) {
		add("ipc", "ipc")
	}
	pid := 0
	if box.Init != nil {
		pid = box.Init.PID
		if box.Pause {
			put("pid", fmt.Sprintf("/proc/%d/ns/pid", pid))
		} else {
			add("pid", "pid")
		}
	}
	return map[string]any{
		"pid": pid, "runtimeHandler": box.Handler, "config": box.Config, "state": box.State,
		"cgroupParent": box.CgroupParent, "network": box.Network, "networkCheck": s.checkNetwork(ctx, box),
		"runtimeSpec": map[string]any{"linux": map[string]any{"namespaces": namespaces}},
	}
}

// checkTimeout bounds the check of a pod's network, for a client that waits.
const checkTimeout = 10 * time.Second

// checkNetwork is what the plugins say of a pod's network (CNI's CHECK): "ok",
// what is wrong with it, or nothing where there is none.
func (s *Server) checkNetwork(ctx context.Context, box *record.Sandbox) string {
	if box.State != record.SandboxReady || spec.HostNetwork(box.Config) {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err := s.Network.Check(ctx, network.Pod{ID: box.ID, NetNS: s.Paths.Namespace(box.ID, "net")})
	switch {
	case err == nil:
		return "ok"
	case box.Pause:
		return "not known, as a kernel of the pod's own may have taken up its addresses: " + err.Error()
	}
	return err.Error()
}

// ListPodSandbox implements the CRI.
func (s *Server) ListPodSandbox(_ context.Context, req *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	list, err := s.listSandboxes(req.GetFilter())
	if err != nil {
		return nil, err
	}
	resp := new(runtime.ListPodSandboxResponse)
	fill(resp, list)
	return resp, nil
}

// matches tells whether labels hold all that is selected.
func matches(labels, selected map[string]string) bool {
	for k, v := range selected {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}
