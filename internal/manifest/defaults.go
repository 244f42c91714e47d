package manifest

import (
	"cmp"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// defaultGrace is Kubernetes' time between SIGTERM and SIGKILL, in seconds.
const defaultGrace = 30

// setDefaults fills in what an API server would.
func setDefaults(pod *corev1.Pod) {
	pod.Namespace = cmp.Or(pod.Namespace, "default")
	spec := &pod.Spec
	spec.RestartPolicy = cmp.Or(spec.RestartPolicy, corev1.RestartPolicyAlways)
	spec.DNSPolicy = cmp.Or(spec.DNSPolicy, corev1.DNSClusterFirst)
	if spec.TerminationGracePeriodSeconds == nil {
		spec.TerminationGracePeriodSeconds = new(int64(defaultGrace))
	}
	if spec.SecurityContext == nil {
		spec.SecurityContext = &corev1.PodSecurityContext{}
	}
	for _, c := range allContainers(spec) {
		if c.ImagePullPolicy == "" {
			c.ImagePullPolicy = defaultPullPolicy(c.Image)
		}
		for i := range c.Ports {
			p := &c.Ports[i]
			p.Protocol = cmp.Or(p.Protocol, corev1.ProtocolTCP)
			if spec.HostNetwork && p.HostPort == 0 {
				p.HostPort = p.ContainerPort
			}
		}
		setRequestDefaults(&c.Resources)
		if c.SecurityContext == nil {
			c.SecurityContext = &corev1.SecurityContext{}
		}
	}
}

// defaultPullPolicy is Always for what may change behind its name.
func defaultPullPolicy(image string) corev1.PullPolicy {
	if strings.Contains(image, "@") {
		return corev1.PullIfNotPresent
	}
	name := image[strings.LastIndex(image, "/")+1:]
	if _, tag, ok := strings.Cut(name, ":"); !ok || tag == "latest" {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

// setRequestDefaults makes a request of each limit that has none.
func setRequestDefaults(r *corev1.ResourceRequirements) {
	for name, limit := range r.Limits {
		if _, ok := r.Requests[name]; ok {
			continue
		}
		if r.Requests == nil {
			r.Requests = corev1.ResourceList{}
		}
		r.Requests[name] = limit
	}
}

// allContainers are the init containers and the containers, to be changed in
// place.
func allContainers(spec *corev1.PodSpec) []*corev1.Container {
	var all []*corev1.Container
	for i := range spec.InitContainers {
		all = append(all, &spec.InitContainers[i])
	}
	for i := range spec.Containers {
		all = append(all, &spec.Containers[i])
	}
	return all
}
