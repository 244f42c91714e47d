package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// security sets seccomp, AppArmor, SELinux and the paths hidden or read-only.
func (b *builder) security() error {
	if err := b.seccomp(); err != nil {
		return err
	}
	if err := b.apparmor(); err != nil {
		return err
	}
	if err := b.selinux(); err != nil {
		return err
	}
	if b.privileged() {
		return nil
	}
	// No list is no path: the kubelet always sends its defaults, but for
	// procMount Unmasked, and that cannot be told from a client that sends
	// nothing.
	if err := checkHiddenPaths(b.sc); err != nil {
		return err
	}
	b.spec.Linux.MaskedPaths = slices.Clone(b.sc.GetMaskedPaths())
	b.spec.Linux.ReadonlyPaths = slices.Clone(b.sc.GetReadonlyPaths())
	return nil
}

// Profiles are the security profiles that sc asks for, the deprecated fields
// included; nil is none asked for.
func Profiles(sc *runtime.LinuxContainerSecurityContext) (seccomp, apparmor *runtime.SecurityProfile, err error) {
	//lint:ignore SA1019 deprecated, but still sent
	seccomp, err = profile("seccomp", sc.GetSeccomp(), "seccomp_profile_path", sc.GetSeccompProfilePath())
	if err != nil {
		return nil, nil, err
	}
	//lint:ignore SA1019 deprecated, but still sent
	apparmor, err = profile("apparmor", sc.GetApparmor(), "apparmor_profile", sc.GetApparmorProfile())
	return seccomp, apparmor, err
}

func profile(field string, p *runtime.SecurityProfile, oldField, old string) (*runtime.SecurityProfile, error) {
	if p == nil && old != "" {
		field = oldField
		name, local := strings.CutPrefix(old, "localhost/")
		switch {
		case local:
			p = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: name}
		case old == "runtime/default", old == "docker/default":
			p = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
		case old == "unconfined":
			p = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
		default:
			return nil, fmt.Errorf("linux.security_context.%s: %s: use runtime/default, unconfined or localhost/NAME: %w", field, Shown(old), errdefs.ErrInvalidArgument)
		}
	}
	if p == nil {
		return nil, nil
	}
	switch p.GetProfileType() {
	case runtime.SecurityProfile_RuntimeDefault, runtime.SecurityProfile_Unconfined:
		if p.GetLocalhostRef() != "" {
			return nil, fmt.Errorf("linux.security_context.%s.localhost_ref: %s: it is for profile_type Localhost only: %w", field, Shown(p.GetLocalhostRef()), errdefs.ErrInvalidArgument)
		}
	case runtime.SecurityProfile_Localhost:
		if p.GetLocalhostRef() == "" {
			return nil, fmt.Errorf("linux.security_context.%s.localhost_ref: it is required for profile_type Localhost: %w", field, errdefs.ErrInvalidArgument)
		}
	default:
		return nil, fmt.Errorf("linux.security_context.%s.profile_type: %d is no type; use RuntimeDefault, Unconfined or Localhost: %w", field, p.GetProfileType(), errdefs.ErrInvalidArgument)
	}
	return p, nil
}

// seccomp: a profile asked for on a kernel without seccomp is an error, not
// less protection than the pod believes it has.
func (b *builder) seccomp() error {
	p, _, err := Profiles(b.sc)
	if err != nil {
		return err
	}
	if b.privileged() || p == nil || p.GetProfileType() == runtime.SecurityProfile_Unconfined {
		return nil
	}
	if !b.in.Kernel.Seccomp {
		return fmt.Errorf("linux.security_context.seccomp: %s: the kernel has no seccomp filters (CONFIG_SECCOMP_FILTER): use Unconfined, or another node: %w", p.GetProfileType(), errdefs.ErrFailedPrecondition)
	}
	if p.GetProfileType() == runtime.SecurityProfile_RuntimeDefault {
		b.spec.Linux.Seccomp = seccomp.DefaultProfile(b.spec)
		return nil
	}
	decoded, unknown, err := decodeSeccomp(b.in.Host.SeccompProfile)
	if err != nil {
		return fmt.Errorf("linux.security_context.seccomp.localhost_ref: profile %s: %w: %w", p.GetLocalhostRef(), err, errdefs.ErrInvalidArgument)
	}
	if unknown != nil {
		b.warn("seccomp profile %s: %v: not part of the OCI runtime spec and ignored, with the conditions it may state", p.GetLocalhostRef(), unknown)
	}
	b.spec.Linux.Seccomp = decoded
	return nil
}

var (
	seccompActions = []specs.LinuxSeccompAction{
		specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno,
		specs.ActTrace, specs.ActAllow, specs.ActLog, specs.ActNotify,
	}
	seccompOperators = []specs.LinuxSeccompOperator{
		specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
		specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual,
	}
)

// decodeSeccomp reads a profile. Keys that the OCI spec does not have, as in
// Docker's own format, come back as unknown; they do not make it invalid.
func decodeSeccomp(data []byte) (p *specs.LinuxSeccomp, unknown, err error) {
	p = &specs.LinuxSeccomp{}
	strict := json.NewDecoder(bytes.NewReader(data))
	strict.DisallowUnknownFields()
	if unknown = strict.Decode(p); unknown != nil {
		p = &specs.LinuxSeccomp{}
	}
	if err := json.Unmarshal(data, p); err != nil {
		if errors.Is(err, io.EOF) || len(bytes.TrimSpace(data)) == 0 {
			return nil, nil, errors.New("it is empty: write a seccomp profile as JSON")
		}
		return nil, nil, fmt.Errorf("it is not a seccomp profile in JSON: %w", err)
	}
	if !slices.Contains(seccompActions, p.DefaultAction) {
		return nil, nil, fmt.Errorf("defaultAction: %q is no action; use SCMP_ACT_ERRNO or another of the OCI runtime spec", p.DefaultAction)
	}
	for i, call := range p.Syscalls {
		if len(call.Names) == 0 {
			return nil, nil, fmt.Errorf("syscalls[%d].names: it is empty: name the system calls", i)
		}
		if !slices.Contains(seccompActions, call.Action) {
			return nil, nil, fmt.Errorf("syscalls[%d].action: %q is no action", i, call.Action)
		}
		for j, arg := range call.Args {
			if !slices.Contains(seccompOperators, arg.Op) || arg.Index > 5 {
				return nil, nil, fmt.Errorf("syscalls[%d].args[%d]: index %d, op %q: the index is 0 to 5 and op an operator of the OCI runtime spec", i, j, arg.Index, arg.Op)
			}
		}
	}
	return p, unknown, nil
}

func (b *builder) apparmor() error {
	_, p, err := Profiles(b.sc)
	if err != nil {
		return err
	}
	if !b.in.Kernel.AppArmor {
		local := p != nil && p.GetProfileType() == runtime.SecurityProfile_Localhost
		if local || p != nil && p.GetProfileType() == runtime.SecurityProfile_RuntimeDefault && !b.privileged() {
			return fmt.Errorf("linux.security_context.apparmor: %s: the kernel has no AppArmor: leave it unset or Unconfined, or use another node: %w", p.GetProfileType(), errdefs.ErrFailedPrecondition)
		}
		return nil
	}
	switch {
	case p != nil && p.GetProfileType() == runtime.SecurityProfile_Localhost:
		b.spec.Process.ApparmorProfile = strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")
	case b.privileged(), p != nil && p.GetProfileType() == runtime.SecurityProfile_Unconfined:
	case p != nil && b.in.AppArmorDefault == "":
		return fmt.Errorf("linux.security_context.apparmor: RuntimeDefault: no default profile could be loaded (is apparmor_parser installed?): use a Localhost profile or Unconfined: %w", errdefs.ErrFailedPrecondition)
	default:
		b.spec.Process.ApparmorProfile = b.in.AppArmorDefault
	}
	return nil
}

// selinux: options on a node without SELinux are ignored, as the CRI calls the
// context optional and node agents set it on all their pods.
func (b *builder) selinux() error {
	o := b.sc.GetSelinuxOptions()
	if b.privileged() || o.GetUser()+o.GetRole()+o.GetType()+o.GetLevel() == "" {
		return nil
	}
	if b.in.Kernel.SELinux {
		return fmt.Errorf("linux.security_context.selinux_options: SELinux labels are not supported yet: %w", errdefs.ErrNotImplemented)
	}
	b.warn("linux.security_context.selinux_options are ignored: the kernel has no SELinux")
	return nil
}
