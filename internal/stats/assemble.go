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

// AssemblePod puts together a pod's statistics. Usage is that of its cgroup or
// of Sum, nil where nothing of it runs; network is nil for a pod in the host's
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

// Sum adds up the usage of a pod's containers, for a pod that has no cgroup of
// its own. There is no sum of pressure, nor of what is available.
func Sum(usages ...*Usage) *Usage {
	sum := &Usage{}
	for _, u := range usages {
		if u == nil {
			continue
		}
		sum.Tasks += u.Tasks
		sum.Processes += u.Processes
		if c := u.CPU; c != nil {
			if sum.CPU == nil {
				sum.CPU = &runtime.CpuUsage{}
			}
			sum.CPU.Timestamp = max(sum.CPU.Timestamp, c.Timestamp)
			add(&sum.CPU.UsageCoreNanoSeconds, c.UsageCoreNanoSeconds)
			add(&sum.CPU.UsageNanoCores, c.UsageNanoCores)
		}
		if m := u.Memory; m != nil {
			if sum.Memory == nil {
				sum.Memory = &runtime.MemoryUsage{}
			}
			sum.Memory.Timestamp = max(sum.Memory.Timestamp, m.Timestamp)
			add(&sum.Memory.WorkingSetBytes, m.WorkingSetBytes)
			add(&sum.Memory.UsageBytes, m.UsageBytes)
			add(&sum.Memory.RssBytes, m.RssBytes)
			add(&sum.Memory.PageFaults, m.PageFaults)
			add(&sum.Memory.MajorPageFaults, m.MajorPageFaults)
		}
	}
	if sum.CPU == nil {
		return nil
	}
	return sum
}

// add adds to a figure which is nil until something is known of it.
func add(sum **runtime.UInt64Value, v *runtime.UInt64Value) {
	if v == nil {
		return
	}
	if *sum == nil {
		*sum = value(0)
	}
	(*sum).Value += v.Value
}
