package manifest

import (
	"path"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var sysctlName = regexp.MustCompile(`^[a-z0-9]([-_a-z0-9]*[a-z0-9])?([./][a-z0-9]([-_a-z0-9]*[a-z0-9])?)*$`)

func validatePodSecurity(p *field.Path, s *corev1.PodSecurityContext, hostNetwork bool) field.ErrorList {
	var errs field.ErrorList
	errs = append(errs, validateID(p.Child("runAsUser"), s.RunAsUser)...)
	errs = append(errs, validateID(p.Child("runAsGroup"), s.RunAsGroup)...)
	errs = append(errs, validateID(p.Child("fsGroup"), s.FSGroup)...)
	for i, gid := range s.SupplementalGroups {
		errs = append(errs, validateID(p.Child("supplementalGroups").Index(i), &gid)...)
	}
	if s.SupplementalGroupsPolicy != nil {
		errs = append(errs, oneOf(p.Child("supplementalGroupsPolicy"), *s.SupplementalGroupsPolicy, corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)...)
	}
	if s.FSGroupChangePolicy != nil {
		errs = append(errs, oneOf(p.Child("fsGroupChangePolicy"), *s.FSGroupChangePolicy, corev1.FSGroupChangeAlways, corev1.FSGroupChangeOnRootMismatch)...)
	}
	seen := map[string]bool{}
	for i, sysctl := range s.Sysctls {
		p := p.Child("sysctls").Index(i).Child("name")
		switch {
		case !sysctlName.MatchString(sysctl.Name):
			errs = append(errs, field.Invalid(p, sysctl.Name, "must be a sysctl such as net.ipv4.ip_unprivileged_port_start"))
		case seen[sysctl.Name]:
			errs = append(errs, field.Duplicate(p, sysctl.Name))
		case hostNetwork && strings.HasPrefix(sysctl.Name, "net"):
			errs = append(errs, field.Forbidden(p, "would change the host's network, which hostNetwork shares"))
		}
		seen[sysctl.Name] = true
	}
	errs = append(errs, validateSeccomp(p.Child("seccompProfile"), s.SeccompProfile)...)
	return append(errs, validateAppArmor(p.Child("appArmorProfile"), s.AppArmorProfile)...)
}

func validateSecurity(p *field.Path, s *corev1.SecurityContext) field.ErrorList {
	var errs field.ErrorList
	errs = append(errs, validateID(p.Child("runAsUser"), s.RunAsUser)...)
	errs = append(errs, validateID(p.Child("runAsGroup"), s.RunAsGroup)...)
	errs = append(errs, validateSeccomp(p.Child("seccompProfile"), s.SeccompProfile)...)
	errs = append(errs, validateAppArmor(p.Child("appArmorProfile"), s.AppArmorProfile)...)
	if s.ProcMount != nil {
		errs = append(errs, oneOf(p.Child("procMount"), *s.ProcMount, corev1.DefaultProcMount, corev1.UnmaskedProcMount)...)
	}
	if s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation {
		if isTrue(s.Privileged) {
			errs = append(errs, field.Invalid(p.Child("allowPrivilegeEscalation"), false, "cannot be together with privileged"))
		}
		if s.Capabilities != nil && slices.Contains(s.Capabilities.Add, "CAP_SYS_ADMIN") {
			errs = append(errs, field.Invalid(p.Child("allowPrivilegeEscalation"), false, "cannot be together with CAP_SYS_ADMIN"))
		}
	}
	return errs
}

func validateID(p *field.Path, id *int64) field.ErrorList {
	if id == nil {
		return nil
	}
	var errs field.ErrorList
	for _, problem := range validation.IsValidUserID(*id) {
		errs = append(errs, field.Invalid(p, *id, problem))
	}
	return errs
}

func validateSeccomp(p *field.Path, s *corev1.SeccompProfile) field.ErrorList {
	if s == nil {
		return nil
	}
	return validateProfile(p, string(s.Type), s.LocalhostProfile)
}

func validateAppArmor(p *field.Path, s *corev1.AppArmorProfile) field.ErrorList {
	if s == nil {
		return nil
	}
	return validateProfile(p, string(s.Type), s.LocalhostProfile)
}

// validateProfile checks a security profile; the kinds of both have the same
// names.
func validateProfile(p *field.Path, kind string, local *string) field.ErrorList {
	const localhost = string(corev1.SeccompProfileTypeLocalhost)
	switch {
	case kind == "":
		return field.ErrorList{field.Required(p.Child("type"), "one of Localhost, RuntimeDefault, Unconfined")}
	case kind != localhost && local != nil:
		return field.ErrorList{field.Forbidden(p.Child("localhostProfile"), "is for type Localhost")}
	case kind != localhost:
		return oneOf(p.Child("type"), kind, string(corev1.SeccompProfileTypeRuntimeDefault), string(corev1.SeccompProfileTypeUnconfined), localhost)
	case local == nil || *local == "":
		return field.ErrorList{field.Required(p.Child("localhostProfile"), "name the profile")}
	case path.IsAbs(*local) || slices.Contains(strings.Split(*local, "/"), ".."):
		return field.ErrorList{field.Invalid(p.Child("localhostProfile"), *local, "must be relative to the directory of profiles, without '..'")}
	}
	return nil
}
