package manifest

import (
	"fmt"
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

// validate is what an API server would refuse, and what cannot be done here. It
// expects defaults to be set.
func validate(pod *corev1.Pod) field.ErrorList {
	meta, spec := field.NewPath("metadata"), field.NewPath("spec")
	var errs field.ErrorList
	if pod.Name == "" {
		errs = append(errs, field.Required(meta.Child("name"), "name the pod"))
	} else {
		errs = append(errs, name(meta.Child("name"), pod.Name, content.IsDNS1123Subdomain)...)
	}
	errs = append(errs, name(meta.Child("namespace"), pod.Namespace, content.IsDNS1123Label)...)
	for key, value := range pod.Labels {
		errs = append(errs, name(meta.Child("labels").Key(key), key, content.IsLabelKey)...)
		errs = append(errs, name(meta.Child("labels").Key(key), value, content.IsLabelValue)...)
		if strings.HasPrefix(key, reservedLabels) {
			errs = append(errs, field.Forbidden(meta.Child("labels").Key(key), "is set by berth run"))
		}
	}
	for key := range pod.Annotations {
		errs = append(errs, name(meta.Child("annotations").Key(key), strings.ToLower(key), content.IsLabelKey)...)
		if key == AnnotationRunDir {
			errs = append(errs, field.Forbidden(meta.Child("annotations").Key(key), "is set by berth run"))
		}
	}
	errs = append(errs, validateSpec(spec, &pod.Spec)...)
	errs = append(errs, validateVolumes(spec.Child("volumes"), pod.Spec.Volumes)...)
	errs = append(errs, validateContainers(spec, &pod.Spec)...)
	errs = append(errs, validateHostPorts(spec, &pod.Spec)...)
	return errs
}

// name checks s with one of Kubernetes' tests of names.
func name(p *field.Path, s string, test func(string) []string) field.ErrorList {
	var errs field.ErrorList
	for _, problem := range test(s) {
		errs = append(errs, field.Invalid(p, s, problem))
	}
	return errs
}

// oneOf checks s against the values that are supported; empty is unset.
func oneOf[T ~string](p *field.Path, s T, supported ...T) field.ErrorList {
	if s == "" || slices.Contains(supported, s) {
		return nil
	}
	return field.ErrorList{field.NotSupported(p, s, supported)}
}

func validateSpec(p *field.Path, spec *corev1.PodSpec) field.ErrorList {
	var errs field.ErrorList
	errs = append(errs, oneOf(p.Child("restartPolicy"), spec.RestartPolicy, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
	errs = append(errs, oneOf(p.Child("dnsPolicy"), spec.DNSPolicy, corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet, corev1.DNSDefault, corev1.DNSNone)...)
	if spec.OS != nil {
		errs = append(errs, oneOf(p.Child("os", "name"), spec.OS.Name, corev1.Linux)...)
	}
	if grace := *spec.TerminationGracePeriodSeconds; grace < 0 {
		errs = append(errs, field.Invalid(p.Child("terminationGracePeriodSeconds"), grace, "must not be negative"))
	}
	if spec.Hostname != "" {
		errs = append(errs, name(p.Child("hostname"), spec.Hostname, content.IsDNS1123Label)...)
	}
	if spec.RuntimeClassName != nil {
		errs = append(errs, name(p.Child("runtimeClassName"), *spec.RuntimeClassName, content.IsDNS1123Subdomain)...)
	}
	if shared := spec.ShareProcessNamespace; shared != nil && *shared && spec.HostPID {
		errs = append(errs, field.Invalid(p.Child("shareProcessNamespace"), true, "cannot be together with hostPID"))
	}
	errs = append(errs, validateDNS(p, spec)...)
	for i, alias := range spec.HostAliases {
		p := p.Child("hostAliases").Index(i)
		if _, err := netip.ParseAddr(alias.IP); err != nil {
			errs = append(errs, field.Invalid(p.Child("ip"), alias.IP, "must be an IP address"))
		}
		for j, host := range alias.Hostnames {
			errs = append(errs, name(p.Child("hostnames").Index(j), host, content.IsDNS1123Subdomain)...)
		}
	}
	return append(errs, validatePodSecurity(p.Child("securityContext"), spec.SecurityContext, spec.HostNetwork)...)
}

func validateDNS(p *field.Path, spec *corev1.PodSpec) field.ErrorList {
	var errs field.ErrorList
	config := spec.DNSConfig
	p = p.Child("dnsConfig")
	if spec.DNSPolicy == corev1.DNSNone && (config == nil || len(config.Nameservers) == 0) {
		errs = append(errs, field.Required(p.Child("nameservers"), "dnsPolicy None needs one"))
	}
	if config == nil {
		return errs
	}
	for i, server := range config.Nameservers {
		if _, err := netip.ParseAddr(server); err != nil {
			errs = append(errs, field.Invalid(p.Child("nameservers").Index(i), server, "must be an IP address"))
		}
	}
	for i, search := range config.Searches {
		if search == "." {
			continue
		}
		errs = append(errs, name(p.Child("searches").Index(i), strings.TrimSuffix(search, "."), validation.IsDNS1123SubdomainWithUnderscore)...)
	}
	for i, option := range config.Options {
		p := p.Child("options").Index(i)
		if option.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), "name the option"))
		}
		if strings.ContainsAny(option.Name, " \t\n") || option.Value != nil && strings.ContainsAny(*option.Value, " \t\n") {
			errs = append(errs, field.Invalid(p, option.Name, "must have no spaces"))
		}
	}
	return errs
}

func validateVolumes(p *field.Path, volumes []corev1.Volume) field.ErrorList {
	var errs field.ErrorList
	seen := map[string]bool{}
	for i, v := range volumes {
		p := p.Index(i)
		errs = append(errs, name(p.Child("name"), v.Name, content.IsDNS1123Label)...)
		if seen[v.Name] {
			errs = append(errs, field.Duplicate(p.Child("name"), v.Name))
		}
		seen[v.Name] = true
		switch {
		case v.EmptyDir != nil && v.HostPath != nil:
			errs = append(errs, field.Forbidden(p.Child("hostPath"), "a volume has one kind, and this is an emptyDir"))
		case v.EmptyDir != nil:
			errs = append(errs, validateEmptyDir(p.Child("emptyDir"), v.EmptyDir)...)
		case v.HostPath != nil:
			errs = append(errs, validateHostPath(p.Child("hostPath"), v.HostPath)...)
		default:
			errs = append(errs, field.Required(p, "give the volume an emptyDir or a hostPath"))
		}
	}
	return errs
}

func validateEmptyDir(p *field.Path, v *corev1.EmptyDirVolumeSource) field.ErrorList {
	errs := oneOf(p.Child("medium"), v.Medium, corev1.StorageMediumDefault, corev1.StorageMediumMemory)
	if v.SizeLimit == nil {
		return errs
	}
	if v.SizeLimit.Sign() <= 0 {
		errs = append(errs, field.Invalid(p.Child("sizeLimit"), v.SizeLimit.String(), "must be above zero"))
	}
	if v.Medium != corev1.StorageMediumMemory {
		errs = append(errs, field.Forbidden(p.Child("sizeLimit"), "is kept with medium Memory alone; remove it, or set the medium"))
	}
	return errs
}

func validateHostPath(p *field.Path, v *corev1.HostPathVolumeSource) field.ErrorList {
	var errs field.ErrorList
	switch {
	case v.Path == "":
		errs = append(errs, field.Required(p.Child("path"), "give a path on this machine"))
	case !path.IsAbs(v.Path):
		errs = append(errs, field.Invalid(p.Child("path"), v.Path, "must be absolute"))
	case slices.Contains(strings.Split(v.Path, "/"), ".."):
		errs = append(errs, field.Invalid(p.Child("path"), v.Path, "must not contain '..'"))
	}
	if v.Type != nil {
		errs = append(errs, oneOf(p.Child("type"), *v.Type, corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory,
			corev1.HostPathFileOrCreate, corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev)...)
	}
	return errs
}

// validateHostPorts finds ports of the host that two containers want.
func validateHostPorts(p *field.Path, spec *corev1.PodSpec) field.ErrorList {
	var errs field.ErrorList
	seen := map[string]bool{}
	for i, c := range spec.Containers {
		for j, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			key := fmt.Sprintf("%s/%s/%d", port.Protocol, port.HostIP, port.HostPort)
			if seen[key] {
				errs = append(errs, field.Duplicate(p.Child("containers").Index(i).Child("ports").Index(j).Child("hostPort"), port.HostPort))
			}
			seen[key] = true
		}
	}
	return errs
}

// protocols are the CRI's names of Kubernetes' protocols.
var protocols = map[corev1.Protocol]runtime.Protocol{
	corev1.ProtocolTCP: runtime.Protocol_TCP, corev1.ProtocolUDP: runtime.Protocol_UDP, corev1.ProtocolSCTP: runtime.Protocol_SCTP,
}
