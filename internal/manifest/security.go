package manifest

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	corev1 "k8s.io/api/core/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What a container must not see or change under /proc and /sys, as a kubelet of
// Kubernetes 1.37 asks for it; it adds Options.MaskedPaths.
var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// sandboxSecurity is the sandbox's; of it the namespaces matter most.
func (p *Plan) sandboxSecurity() *runtime.LinuxSandboxSecurityContext {
	s := p.Pod.Spec.SecurityContext
	return &runtime.LinuxSandboxSecurityContext{
		NamespaceOptions:         p.namespaces(),
		SelinuxOptions:           selinux(s.SELinuxOptions),
		RunAsUser:                int64Value(s.RunAsUser),
		RunAsGroup:               int64Value(s.RunAsGroup),
		SupplementalGroups:       p.groups(),
		SupplementalGroupsPolicy: p.groupsPolicy(),
		Privileged:               slices.ContainsFunc(allContainers(&p.Pod.Spec), func(c *corev1.Container) bool { return isTrue(c.SecurityContext.Privileged) }),
		Seccomp:                  &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault},
	}
}

func (p *Plan) namespaces() *runtime.NamespaceOption {
	spec := &p.Pod.Spec
	n := &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}
	switch {
	case spec.HostPID:
		n.Pid = runtime.NamespaceMode_NODE
	case isTrue(spec.ShareProcessNamespace):
		n.Pid = runtime.NamespaceMode_POD
	}
	if spec.HostNetwork {
		n.Network = runtime.NamespaceMode_NODE
	}
	if spec.HostIPC {
		n.Ipc = runtime.NamespaceMode_NODE
	}
	return n
}

// groups are the supplemental groups; the group of the volumes is one.
func (p *Plan) groups() []int64 {
	s := p.Pod.Spec.SecurityContext
	groups := slices.Clone(s.SupplementalGroups)
	if s.FSGroup != nil && !slices.Contains(groups, *s.FSGroup) {
		groups = append(groups, *s.FSGroup)
	}
	return groups
}

func (p *Plan) groupsPolicy() runtime.SupplementalGroupsPolicy {
	if policy := p.Pod.Spec.SecurityContext.SupplementalGroupsPolicy; policy != nil && *policy == corev1.SupplementalGroupsPolicyStrict {
		return runtime.SupplementalGroupsPolicy_Strict
	}
	return runtime.SupplementalGroupsPolicy_Merge
}

// security is a container's: its own settings, else the pod's.
func (p *Plan) security(c *Container) *runtime.LinuxContainerSecurityContext {
	pod, own := p.Pod.Spec.SecurityContext, c.spec.SecurityContext
	s := &runtime.LinuxContainerSecurityContext{
		Privileged:               isTrue(own.Privileged),
		NamespaceOptions:         p.namespaces(),
		SelinuxOptions:           selinux(either(own.SELinuxOptions, pod.SELinuxOptions)),
		RunAsUser:                int64Value(either(own.RunAsUser, pod.RunAsUser)),
		RunAsGroup:               int64Value(either(own.RunAsGroup, pod.RunAsGroup)),
		ReadonlyRootfs:           isTrue(own.ReadOnlyRootFilesystem),
		SupplementalGroups:       p.groups(),
		SupplementalGroupsPolicy: p.groupsPolicy(),
		NoNewPrivs:               own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation,
		Seccomp:                  p.seccomp(either(own.SeccompProfile, pod.SeccompProfile)),
		Apparmor:                 apparmor(either(own.AppArmorProfile, pod.AppArmorProfile)),
	}
	if own.ProcMount == nil || *own.ProcMount == corev1.DefaultProcMount {
		s.MaskedPaths, s.ReadonlyPaths = slices.Concat(maskedPaths, p.opts.MaskedPaths), slices.Clone(readonlyPaths)
	}
	if own.Capabilities != nil {
		s.Capabilities = &runtime.Capability{}
		for _, name := range own.Capabilities.Add {
			s.Capabilities.AddCapabilities = append(s.Capabilities.AddCapabilities, string(name))
		}
		for _, name := range own.Capabilities.Drop {
			s.Capabilities.DropCapabilities = append(s.Capabilities.DropCapabilities, string(name))
		}
	}
	return s
}

func either[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

func int64Value(v *int64) *runtime.Int64Value {
	if v == nil {
		return nil
	}
	return &runtime.Int64Value{Value: *v}
}

func selinux(o *corev1.SELinuxOptions) *runtime.SELinuxOption {
	if o == nil {
		return nil
	}
	return &runtime.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

// seccomp is Unconfined where nothing is said, which is Kubernetes' default.
func (p *Plan) seccomp(s *corev1.SeccompProfile) *runtime.SecurityProfile {
	switch {
	case s == nil || s.Type == corev1.SeccompProfileTypeUnconfined:
		return &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
	case s.Type == corev1.SeccompProfileTypeLocalhost:
		return &runtime.SecurityProfile{
			ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: filepath.Join(p.opts.SeccompRoot, *s.LocalhostProfile),
		}
	}
	return &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
}

func apparmor(s *corev1.AppArmorProfile) *runtime.SecurityProfile {
	switch {
	case s == nil:
		return nil
	case s.Type == corev1.AppArmorProfileTypeUnconfined:
		return &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
	case s.Type == corev1.AppArmorProfileTypeLocalhost:
		return &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: *s.LocalhostProfile}
	}
	return &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
}

// checkNonRoot keeps runAsNonRoot: the user is the manifest's, else the
// image's, which must be a number to be known.
func (p *Plan) checkNonRoot(c *Container, image *runtime.Image) error {
	pod, own := p.Pod.Spec.SecurityContext, c.spec.SecurityContext
	if !isTrue(either(own.RunAsNonRoot, pod.RunAsNonRoot)) {
		return nil
	}
	user := either(own.RunAsUser, pod.RunAsUser)
	fail := func(format string, args ...any) error {
		return fmt.Errorf("container %s: runAsNonRoot is set, and %s: set runAsUser: %w", c.Name, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	switch {
	case user != nil && *user == 0:
		return fail("runAsUser is 0")
	case user != nil:
		return nil
	case image.GetUid() != nil && image.GetUid().Value == 0, image.GetUid() == nil && image.GetUsername() == "":
		return fail("image %s runs as root", c.Image)
	case image.GetUid() == nil:
		return fail("whether user %q of image %s is root is not known", image.GetUsername(), c.Image)
	}
	return nil
}
