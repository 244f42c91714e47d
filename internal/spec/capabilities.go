package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCapabilities are those of containerd, CRI-O's predecessor and Docker,
// which images count on.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// known are all capabilities by name, in the kernel's order.
var known = func() []string {
	var names []string
	for _, c := range capability.ListKnown() {
		names = append(names, "CAP_"+strings.ToUpper(c.String()))
	}
	return names
}()

const all = "ALL"

// CheckCapability gives a capability's full name: "net_admin" is
// CAP_NET_ADMIN. "ALL" is allowed and stays. Others: ErrInvalidArgument.
func CheckCapability(name string) (string, error) {
	upper := strings.ToUpper(name)
	if upper == all {
		return all, nil
	}
	full := "CAP_" + strings.TrimPrefix(upper, "CAP_")
	if !slices.Contains(known, full) {
		return "", fmt.Errorf("%s is no capability: use a name of capabilities(7) without CAP_, or ALL: %w", Shown(name), errdefs.ErrInvalidArgument)
	}
	return full, nil
}

// capabilities follows the CRI: ALL first, then single additions, then single
// drops, so that "drop ALL, add X" is X and "add ALL, drop X" is all but X.
//
// Added capabilities are not inheritable, against the letter of the CRI's
// comment and as both peers have it: inheritable ones give a binary with file
// capabilities more than its user has (CVE-2022-24769). Ambient ones have to
// be inheritable.
func (b *builder) capabilities() error {
	c := b.sc.GetCapabilities()
	add, err := capabilityNames("add_capabilities", c.GetAddCapabilities())
	if err != nil {
		return err
	}
	drop, err := capabilityNames("drop_capabilities", c.GetDropCapabilities())
	if err != nil {
		return err
	}
	ambient, err := capabilityNames("add_ambient_capabilities", c.GetAddAmbientCapabilities())
	if err != nil {
		return err
	}
	available := b.in.Kernel.capabilities()
	set, raised := map[string]bool{}, map[string]bool{}
	switch {
	case b.privileged(), slices.Contains(add, all) && !slices.Contains(drop, all), slices.Contains(ambient, all) && !slices.Contains(drop, all):
		put(set, available)
	case !slices.Contains(drop, all):
		put(set, defaultCapabilities)
	}
	if b.privileged() {
		add, drop = nil, nil // it has them all, whatever is dropped
	}
	if slices.Contains(ambient, all) && !slices.Contains(drop, all) {
		put(raised, available)
	}
	put(set, add)
	put(set, ambient)
	put(raised, ambient)
	for _, name := range drop {
		delete(set, name)
		delete(raised, name)
	}
	for _, name := range slices.Concat(add, ambient) {
		if set[name] && !slices.Contains(available, name) {
			return fmt.Errorf("linux.security_context.capabilities: %s cannot be added: berth itself does not have it: run berth with it, or do not ask for it: %w", name, errdefs.ErrFailedPrecondition)
		}
	}
	list := ordered(set, available)
	b.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: list, Effective: list, Permitted: list}
	if len(raised) > 0 {
		names := ordered(raised, available)
		b.spec.Process.Capabilities.Ambient, b.spec.Process.Capabilities.Inheritable = names, names
	}
	return nil
}

func capabilityNames(field string, names []string) ([]string, error) {
	var out []string
	for i, name := range names {
		full, err := CheckCapability(name)
		if err != nil {
			return nil, fmt.Errorf("linux.security_context.capabilities.%s[%d]: %w", field, i, err)
		}
		out = append(out, full)
	}
	return out, nil
}

func put(set map[string]bool, names []string) {
	for _, name := range names {
		if name != all {
			set[name] = true
		}
	}
}

// ordered gives the members of set that the daemon has, in the kernel's order.
func ordered(set map[string]bool, available []string) []string {
	out := []string{}
	for _, name := range known {
		if set[name] && slices.Contains(available, name) {
			out = append(out, name)
		}
	}
	return out
}
