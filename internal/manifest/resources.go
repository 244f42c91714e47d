package manifest

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// How a kubelet turns CPU and memory into a cgroup's settings.
const (
	cpuPeriod      = 100_000 // microseconds
	minCPUQuota    = 1_000
	minCPUShares   = 2
	maxCPUShares   = 262_144
	sharesPerCPU   = 1024
	oomGuaranteed  = -997
	oomBestEffort  = 1000
	oomBurstMin    = 1000 + oomGuaranteed
	oomBurstMax    = oomBestEffort - 1
	oomScoreOfNode = 1000
)

func cpuShares(request *resource.Quantity) int64 {
	return min(max(request.MilliValue()*sharesPerCPU/1000, minCPUShares), maxCPUShares)
}

// linuxResources sets shares by the request, quota and memory by the limits;
// zero is no limit.
func linuxResources(cpuRequest, cpuLimit, memoryLimit *resource.Quantity) *runtime.LinuxContainerResources {
	r := &runtime.LinuxContainerResources{CpuShares: cpuShares(cpuRequest), CpuPeriod: cpuPeriod}
	if milli := cpuLimit.MilliValue(); milli > 0 {
		r.CpuQuota = max(milli*cpuPeriod/1000, minCPUQuota)
	}
	r.MemoryLimitInBytes = memoryLimit.Value()
	return r
}

// resources are a container's.
func (p *Plan) resources(c *Container) *runtime.LinuxContainerResources {
	requests, limits := c.spec.Resources.Requests, c.spec.Resources.Limits
	r := linuxResources(requests.Cpu(), limits.Cpu(), limits.Memory())
	// No swap above the memory's own limit.
	r.MemorySwapLimitInBytes = r.MemoryLimitInBytes
	r.OomScoreAdj = p.oomScore(requests.Memory().Value())
	return r
}

// oomScore is how readily the kernel kills a container: the less memory it
// asked for, the sooner.
func (p *Plan) oomScore(memoryRequest int64) int64 {
	switch qos(&p.Pod.Spec) {
	case corev1.PodQOSGuaranteed:
		return oomGuaranteed
	case corev1.PodQOSBestEffort:
		return oomBestEffort
	}
	if p.opts.Memory <= 0 {
		return oomBurstMax
	}
	share := float64(memoryRequest) / float64(p.opts.Memory)
	return min(max(oomScoreOfNode-int64(oomScoreOfNode*share), oomBurstMin), oomBurstMax)
}

// qos is the pod's quality of service class.
func qos(spec *corev1.PodSpec) corev1.PodQOSClass {
	any, guaranteed := false, true
	for _, c := range allContainers(spec) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := c.Resources.Requests[name], c.Resources.Limits[name]
			any = any || !request.IsZero() || !limit.IsZero()
			guaranteed = guaranteed && !limit.IsZero() && request.Cmp(limit) == 0
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// podResources are what the whole pod may use. Where a container has no limit,
// the pod has none.
func podResources(spec *corev1.PodSpec) *runtime.LinuxContainerResources {
	requests := podTotal(spec, func(c *corev1.Container) corev1.ResourceList { return c.Resources.Requests })
	limits := podTotal(spec, func(c *corev1.Container) corev1.ResourceList { return c.Resources.Limits })
	for _, c := range allContainers(spec) {
		for name := range limits {
			if limit := c.Resources.Limits[name]; limit.IsZero() {
				delete(limits, name)
			}
		}
	}
	return linuxResources(requests.Cpu(), limits.Cpu(), limits.Memory())
}

// podTotal is the sum of the containers and sidecars, or the largest of the
// other init containers with the sidecars before it, whichever is more.
func podTotal(spec *corev1.PodSpec, of func(*corev1.Container) corev1.ResourceList) corev1.ResourceList {
	total := corev1.ResourceList{}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		var sidecars, most resource.Quantity
		for i := range spec.InitContainers {
			c := &spec.InitContainers[i]
			now := sidecars.DeepCopy()
			now.Add(of(c)[name])
			if c.RestartPolicy != nil {
				sidecars = now.DeepCopy()
			}
			if now.Cmp(most) > 0 {
				most = now
			}
		}
		sum := sidecars
		for i := range spec.Containers {
			sum.Add(of(&spec.Containers[i])[name])
		}
		if sum.Cmp(most) > 0 {
			most = sum
		}
		total[name] = most
	}
	return total
}
