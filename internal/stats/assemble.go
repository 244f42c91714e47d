package stats

import (
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// AssembleContainer puts together a container's statistics. Usage is nil for
// one that does not run, layer where it is not known.
func AssembleContainer(a *runtime.ContainerAttributes, u *Usage, layer *runtime.FilesystemUsage) *runtime.ContainerStats {
	s := &runtime.ContainerStats{Attributes: a, WritableLayer: layer}
	if u != nil {
		s.Cpu, s.Memory, s.Swap, s.Io = u.CPU, u.Memory, u.Swap, u.IO
	}
	return s
}

// AssemblePod puts together a pod's statistics. Usage is that of its cgroup,
// nil where nothing of it runs; network is nil for a pod in the host's
// network.
func AssemblePod(a *runtime.PodSandboxAttributes, u *Usage, network *runtime.NetworkUsage, containers []*runtime.ContainerStats) *runtime.PodSandboxStats {
	s := &runtime.LinuxPodSandboxStats{Containers: containers}
	if u != nil {
		s.Cpu, s.Memory, s.Io = u.CPU, u.Memory, u.IO
		if u.CPU != nil {
			s.Process = &runtime.ProcessUsage{Timestamp: u.CPU.Timestamp, ProcessCount: value(u.Processes)}
		}
	}
	// A kubelet takes it that a network has a default interface.
	if network.GetDefaultInterface() != nil {
		s.Network = network
	}
	return &runtime.PodSandboxStats{Attributes: a, Linux: s}
}
