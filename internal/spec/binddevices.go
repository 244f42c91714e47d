package spec

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// BindDevices makes bind mounts of those devices that a container with a user
// namespace has under another path than the host. Such a container cannot make
// nodes, and runtimes give it what the host has at the same path, be it another
// device. It asks the machine for the nodes that there are.
//
// Errors: ErrFailedPrecondition where the host has no node of a device.
func BindDevices(s *specs.Spec) error {
	own := func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UserNamespace }
	if !slices.ContainsFunc(s.Linux.Namespaces, own) {
		return nil
	}
	var kept []specs.LinuxDevice
	var all []specs.LinuxDevice
	for _, d := range s.Linux.Devices {
		if d.Type == "p" || isDevice(d.Path, d) {
			kept = append(kept, d)
			continue
		}
		if all == nil {
			var err error
			if all, err = oci.HostDevices(); err != nil {
				return fmt.Errorf("devices of the host: %w", err)
			}
		}
		source := nodeOf(d, all)
		if source == "" {
			return fmt.Errorf("device %s (%s %d:%d): the host has no node of it, and a container with a user namespace cannot make one: make it below /dev, or leave hostUsers unset: %w",
				d.Path, d.Type, d.Major, d.Minor, errdefs.ErrFailedPrecondition)
		}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: d.Path, Type: "bind", Source: source, Options: []string{"bind", "rprivate", "nosuid", "noexec"}})
	}
	s.Linux.Devices = kept
	return nil
}

// nodeOf finds a node of the device on the host; udev has links to all.
func nodeOf(d specs.LinuxDevice, all []specs.LinuxDevice) string {
	dir := map[string]string{"b": "block"}[d.Type]
	if dir == "" {
		dir = "char"
	}
	link := fmt.Sprintf("/dev/%s/%d:%d", dir, d.Major, d.Minor)
	if found, err := filepath.EvalSymlinks(link); err == nil && isDevice(found, d) {
		return found
	}
	for _, node := range all {
		if isDevice(node.Path, d) {
			return node.Path
		}
	}
	return ""
}

// isDevice tells whether there is a node of the device at the path.
func isDevice(path string, d specs.LinuxDevice) bool {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return false
	}
	kind := uint32(unix.S_IFCHR)
	if d.Type == "b" {
		kind = unix.S_IFBLK
	}
	return st.Mode&unix.S_IFMT == kind && int64(unix.Major(st.Rdev)) == d.Major && int64(unix.Minor(st.Rdev)) == d.Minor
}
