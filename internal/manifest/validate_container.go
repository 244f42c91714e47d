package manifest

import (
	"net/netip"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func validateContainers(p *field.Path, spec *corev1.PodSpec) field.ErrorList {
	var errs field.ErrorList
	if len(spec.Containers) == 0 {
		errs = append(errs, field.Required(p.Child("containers"), "a pod has at least one"))
	}
	seen := map[string]bool{}
	check := func(p *field.Path, c *corev1.Container) {
		if c.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), "name the container"))
		} else {
			errs = append(errs, name(p.Child("name"), c.Name, content.IsDNS1123Label)...)
		}
		if seen[c.Name] {
			errs = append(errs, field.Duplicate(p.Child("name"), c.Name))
		}
		seen[c.Name] = true
		errs = append(errs, validateContainer(p, c, spec)...)
	}
	for i := range spec.InitContainers {
		p, c := p.Child("initContainers").Index(i), &spec.InitContainers[i]
		check(p, c)
		if c.RestartPolicy != nil {
			errs = append(errs, oneOf(p.Child("restartPolicy"), *c.RestartPolicy, corev1.ContainerRestartPolicyAlways)...)
		}
	}
	for i := range spec.Containers {
		check(p.Child("containers").Index(i), &spec.Containers[i])
	}
	return errs
}

func validateContainer(p *field.Path, c *corev1.Container, spec *corev1.PodSpec) field.ErrorList {
	var errs field.ErrorList
	if strings.TrimSpace(c.Image) != c.Image || c.Image == "" {
		errs = append(errs, field.Required(p.Child("image"), "give an image, with no spaces around it"))
	}
	errs = append(errs, oneOf(p.Child("imagePullPolicy"), c.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)...)
	errs = append(errs, validateEnv(p.Child("env"), c.Env)...)
	errs = append(errs, validatePorts(p.Child("ports"), c.Ports, spec.HostNetwork)...)
	errs = append(errs, validateMounts(p.Child("volumeMounts"), c, spec.Volumes)...)
	errs = append(errs, validateResources(p.Child("resources"), &c.Resources)...)
	errs = append(errs, validateSecurity(p.Child("securityContext"), c.SecurityContext)...)
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		if _, ok := runtime.Signal_value["SIGNAL_"+string(*c.Lifecycle.StopSignal)]; !ok {
			errs = append(errs, field.Invalid(p.Child("lifecycle", "stopSignal"), *c.Lifecycle.StopSignal, "must be a signal such as SIGTERM"))
		}
	}
	return errs
}

func validateEnv(p *field.Path, env []corev1.EnvVar) field.ErrorList {
	var errs field.ErrorList
	for i, v := range env {
		p := p.Index(i)
		if v.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), "name the variable"))
		} else {
			errs = append(errs, name(p.Child("name"), v.Name, validation.IsRelaxedEnvVarName)...)
		}
		if v.ValueFrom == nil {
			continue
		}
		if v.Value != "" {
			errs = append(errs, field.Forbidden(p.Child("valueFrom"), "a variable has a value or a valueFrom"))
		}
		ref := v.ValueFrom.FieldRef
		if ref == nil {
			errs = append(errs, field.Required(p.Child("valueFrom", "fieldRef"), "of valueFrom, it alone is supported"))
			continue
		}
		ip := p.Child("valueFrom", "fieldRef")
		errs = append(errs, oneOf(ip.Child("apiVersion"), ref.APIVersion, "v1")...)
		if !knownField(ref.FieldPath) {
			errs = append(errs, field.NotSupported(ip.Child("fieldPath"), ref.FieldPath, fieldPaths))
		}
	}
	return errs
}

func validatePorts(p *field.Path, ports []corev1.ContainerPort, hostNetwork bool) field.ErrorList {
	var errs field.ErrorList
	names := map[string]bool{}
	for i, port := range ports {
		p := p.Index(i)
		if port.Name != "" {
			errs = append(errs, name(p.Child("name"), port.Name, validation.IsValidPortName)...)
			if names[port.Name] {
				errs = append(errs, field.Duplicate(p.Child("name"), port.Name))
			}
			names[port.Name] = true
		}
		for _, problem := range validation.IsValidPortNum(int(port.ContainerPort)) {
			errs = append(errs, field.Invalid(p.Child("containerPort"), port.ContainerPort, problem))
		}
		if port.HostPort != 0 {
			for _, problem := range validation.IsValidPortNum(int(port.HostPort)) {
				errs = append(errs, field.Invalid(p.Child("hostPort"), port.HostPort, problem))
			}
		}
		if hostNetwork && port.HostPort != port.ContainerPort {
			errs = append(errs, field.Invalid(p.Child("hostPort"), port.HostPort, "must equal containerPort where hostNetwork is set"))
		}
		if _, ok := protocols[port.Protocol]; !ok {
			errs = append(errs, field.NotSupported(p.Child("protocol"), port.Protocol, []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}))
		}
		if _, err := netip.ParseAddr(port.HostIP); port.HostIP != "" && err != nil {
			errs = append(errs, field.Invalid(p.Child("hostIP"), port.HostIP, "must be an IP address"))
		}
	}
	return errs
}

func validateMounts(p *field.Path, c *corev1.Container, volumes []corev1.Volume) field.ErrorList {
	var errs field.ErrorList
	seen := map[string]bool{}
	for i, m := range c.VolumeMounts {
		p := p.Index(i)
		if !slices.ContainsFunc(volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
			errs = append(errs, field.NotFound(p.Child("name"), m.Name))
		}
		if !path.IsAbs(m.MountPath) {
			errs = append(errs, field.Invalid(p.Child("mountPath"), m.MountPath, "must be absolute"))
		}
		if seen[path.Clean(m.MountPath)] {
			errs = append(errs, field.Duplicate(p.Child("mountPath"), m.MountPath))
		}
		seen[path.Clean(m.MountPath)] = true
		if m.MountPropagation == nil {
			continue
		}
		errs = append(errs, oneOf(p.Child("mountPropagation"), *m.MountPropagation,
			corev1.MountPropagationNone, corev1.MountPropagationHostToContainer, corev1.MountPropagationBidirectional)...)
		if *m.MountPropagation == corev1.MountPropagationBidirectional && !isTrue(c.SecurityContext.Privileged) {
			errs = append(errs, field.Forbidden(p.Child("mountPropagation"), "Bidirectional is for privileged containers"))
		}
	}
	return errs
}

func validateResources(p *field.Path, r *corev1.ResourceRequirements) field.ErrorList {
	var errs field.ErrorList
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		limit, limited := r.Limits[name]
		request, requested := r.Requests[name]
		if limited && limit.Sign() < 0 {
			errs = append(errs, field.Invalid(p.Child("limits").Key(string(name)), limit.String(), "must not be negative"))
		}
		if requested && request.Sign() < 0 {
			errs = append(errs, field.Invalid(p.Child("requests").Key(string(name)), request.String(), "must not be negative"))
		}
		if limited && requested && request.Cmp(limit) > 0 {
			errs = append(errs, field.Invalid(p.Child("requests").Key(string(name)), request.String(), "must not be above the limit of "+limit.String()))
		}
	}
	return errs
}

func isTrue(b *bool) bool { return b != nil && *b }
