package manifest

import (
	"fmt"
	"path"

	corev1 "k8s.io/api/core/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A Started is what is known once the sandbox runs.
type Started struct {
	// IPs are the pod's addresses, the main one first; the host's where the pod
	// uses the host's network.
	IPs []string
}

// Config is the configuration of one attempt at a container. It fails where the
// image contradicts runAsNonRoot.
func (p *Plan) Config(c *Container, attempt uint32, image *runtime.Image, started Started) (*runtime.ContainerConfig, error) {
	if err := p.checkNonRoot(c, image); err != nil {
		return nil, err
	}
	env, vars := p.env(c, started)
	config := &runtime.ContainerConfig{
		Metadata:    &runtime.ContainerMetadata{Name: c.Name, Attempt: attempt},
		Image:       &runtime.ImageSpec{Image: image.Id, UserSpecifiedImage: c.Image},
		Command:     expandAll(c.spec.Command, vars),
		Args:        expandAll(c.spec.Args, vars),
		WorkingDir:  c.spec.WorkingDir,
		Envs:        env,
		Mounts:      p.mounts(c),
		Labels:      p.containerLabels(c),
		Annotations: p.containerAnnotations(c, attempt),
		LogPath:     LogPath(c.Name, attempt),
		Stdin:       c.spec.Stdin,
		StdinOnce:   c.spec.StdinOnce,
		Tty:         c.spec.TTY,
		Linux: &runtime.LinuxContainerConfig{
			Resources:       p.resources(c),
			SecurityContext: p.security(c),
		},
	}
	if l := c.spec.Lifecycle; l != nil && l.StopSignal != nil {
		config.StopSignal = runtime.Signal(runtime.Signal_value["SIGNAL_"+string(*l.StopSignal)])
	}
	return config, nil
}

// LogPath is a container's log within the pod's log directory.
func LogPath(container string, attempt uint32) string {
	return path.Join(container, fmt.Sprintf("%d.log", attempt))
}

// mounts are the container's volumes and its hosts file.
func (p *Plan) mounts(c *Container) []*runtime.Mount {
	var mounts []*runtime.Mount
	hosts := p.HostsFile != ""
	for _, m := range c.spec.VolumeMounts {
		mount := &runtime.Mount{ContainerPath: m.MountPath, Readonly: m.ReadOnly}
		for _, v := range p.Volumes {
			if v.Name == m.Name {
				mount.HostPath = v.Path
			}
		}
		if m.MountPropagation != nil {
			mount.Propagation = propagations[*m.MountPropagation]
		}
		hosts = hosts && path.Clean(m.MountPath) != "/etc/hosts"
		mounts = append(mounts, mount)
	}
	if hosts {
		mounts = append(mounts, &runtime.Mount{ContainerPath: "/etc/hosts", HostPath: p.HostsFile})
	}
	return mounts
}

var propagations = map[corev1.MountPropagationMode]runtime.MountPropagation{
	corev1.MountPropagationNone:            runtime.MountPropagation_PROPAGATION_PRIVATE,
	corev1.MountPropagationHostToContainer: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
	corev1.MountPropagationBidirectional:   runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL,
}
