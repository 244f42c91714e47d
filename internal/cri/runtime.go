package cri

import (
	"context"
	"encoding/json"
	"fmt"
	goruntime "runtime"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/version"
)

// Version implements the CRI.
func (s *Server) Version(context.Context, *runtime.VersionRequest) (*runtime.VersionResponse, error) {
	return &runtime.VersionResponse{
		Version:     "0.1.0", // of the kubelet's runtime API, fixed since its beginning
		RuntimeName: version.Name, RuntimeVersion: version.Version(), RuntimeApiVersion: "v1",
	}, nil
}

// Status implements the CRI.
func (s *Server) Status(ctx context.Context, req *runtime.StatusRequest) (*runtime.StatusResponse, error) {
	ready := &runtime.RuntimeCondition{Type: runtime.RuntimeReady, Status: true}
	containerd, err := s.Engine.Version(ctx)
	if err != nil {
		ready.Status, ready.Reason, ready.Message = false, "ContainerdNotReady", fmt.Sprintf("containerd does not answer: %v", err)
	}
	network := s.Network.Status(ctx)
	resp := &runtime.StatusResponse{
		Status: &runtime.RuntimeStatus{Conditions: []*runtime.RuntimeCondition{ready,
			{Type: runtime.NetworkReady, Status: network.Ready, Reason: network.Reason, Message: network.Message}}},
		Features: &runtime.RuntimeFeatures{SupplementalGroupsPolicy: true, UserNamespacesHostNetwork: true, MountOptions: true},
	}
	// The handler without a name is the default one.
	for _, name := range append([]string{""}, s.Handlers...) {
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &runtime.RuntimeHandler{
			Name: name, Features: &runtime.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: s.RecursiveReadOnly(name), UserNamespaces: s.UserNamespaces(name)},
		})
	}
	if !req.GetVerbose() {
		return resp, nil
	}
	resp.Info, err = info(map[string]any{
		"config": s.Config, "cniconfig": network.Conflist, "golang": goruntime.Version(),
		"containerd": map[string]any{"version": containerd, "embedded": s.Engine.Embedded(), "address": s.Engine.Address()},
	})
	return resp, err
}

// info is what a verbose answer carries: a JSON text for each key.
func info(values map[string]any) (map[string]string, error) {
	texts := map[string]string{}
	for key, value := range values {
		text, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("info %s: %w", key, err)
		}
		texts[key] = string(text)
	}
	return texts, nil
}

// RuntimeConfig implements the CRI.
func (s *Server) RuntimeConfig(context.Context, *runtime.RuntimeConfigRequest) (*runtime.RuntimeConfigResponse, error) {
	driver := runtime.CgroupDriver_CGROUPFS
	if s.Cgroups.Driver() == "systemd" {
		driver = runtime.CgroupDriver_SYSTEMD
	}
	return &runtime.RuntimeConfigResponse{Linux: &runtime.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig implements the CRI.
func (s *Server) UpdateRuntimeConfig(_ context.Context, req *runtime.UpdateRuntimeConfigRequest) (*runtime.UpdateRuntimeConfigResponse, error) {
	return &runtime.UpdateRuntimeConfigResponse{}, s.Network.SetPodCIDR(req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr())
}
