package spec

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxSeccompProfile bounds a Localhost profile.
const maxSeccompProfile = 8 << 20

// Host is what Container needs to know of the machine for one container.
type Host struct {
	// Mounts and Devices have one element for each of the config's.
	Mounts  []HostPath
	Devices [][]specs.LinuxDevice
	// AllDevices are the host's, for a privileged container.
	AllDevices []specs.LinuxDevice
	// SeccompProfile is the content of the Localhost profile asked for.
	SeccompProfile []byte
}

// Prepare makes the directories that a container's mounts want and finds what
// its spec depends on. Calling it again is harmless; a directory made stays,
// for it is the user's from then on.
func Prepare(c *runtime.ContainerConfig, privilegedWithoutHostDevices bool) (h Host, err error) {
	if h.Mounts, err = PrepareMounts(c.GetMounts()); err != nil {
		return Host{}, err
	}
	if h.Devices, err = findDevices(c.GetDevices()); err != nil {
		return Host{}, err
	}
	sc := c.GetLinux().GetSecurityContext()
	if sc.GetPrivileged() && !privilegedWithoutHostDevices {
		if h.AllDevices, err = oci.HostDevices(); err != nil {
			return Host{}, fmt.Errorf("devices of the host: %w", err)
		}
	}
	profile, _, err := Profiles(sc)
	if err != nil {
		return Host{}, err
	}
	if profile.GetProfileType() == runtime.SecurityProfile_Localhost && !sc.GetPrivileged() {
		if h.SeccompProfile, err = readSeccomp(profile.GetLocalhostRef()); err != nil {
			return Host{}, fmt.Errorf("linux.security_context.seccomp.localhost_ref: %w", err)
		}
	}
	return h, nil
}

// PrepareMounts makes a missing host path as a directory, resolves symbolic
// links, and finds how the mount below is shared where a CRI mount depends on
// that. Mounts that Container refuses anyway are left alone.
func PrepareMounts(mounts []*runtime.Mount) ([]HostPath, error) {
	out := make([]HostPath, len(mounts))
	var table []*mountinfo.Info
	for i, m := range mounts {
		if m.GetImage() != nil {
			continue
		}
		resolved, err := resolveHostPath(m.GetHostPath())
		if err != nil {
			return nil, fmt.Errorf("mounts[%d].host_path: %w", i, err)
		}
		out[i].Path = resolved
		if m.GetPropagation() == runtime.MountPropagation_PROPAGATION_PRIVATE {
			continue
		}
		if table == nil {
			if table, err = mountinfo.GetMounts(nil); err != nil {
				return nil, fmt.Errorf("mounts[%d].propagation: mounts of the host: %w", i, err)
			}
		}
		out[i].MountPoint, out[i].Propagation = propagationOf(table, resolved)
	}
	return out, nil
}

func resolveHostPath(p string) (string, error) {
	if !filepath.IsAbs(p) {
		return "", fmt.Errorf("%s: it must be an absolute path: %w", Shown(p), errdefs.ErrInvalidArgument)
	}
	resolved, err := filepath.EvalSymlinks(p)
	if err == nil {
		return resolved, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s cannot be followed: %w", p, err)
	}
	if target, err := os.Readlink(p); err == nil {
		return "", fmt.Errorf("%s is a symbolic link to %s, which does not exist: %w", p, target, errdefs.ErrNotFound)
	}
	if err := os.MkdirAll(p, 0o755); err != nil {
		return "", fmt.Errorf("%s does not exist and cannot be made: %w", p, err)
	}
	return filepath.EvalSymlinks(p)
}

// propagationOf finds the mount that a path lies on. Of several on one point
// the last in the table is on top.
func propagationOf(table []*mountinfo.Info, p string) (mountPoint string, kind Propagation) {
	var found *mountinfo.Info
	for _, info := range table {
		below := info.Mountpoint == "/" || p == info.Mountpoint || strings.HasPrefix(p, info.Mountpoint+"/")
		if below && (found == nil || len(info.Mountpoint) >= len(found.Mountpoint)) {
			found = info
		}
	}
	if found == nil {
		return "/", Private
	}
	for tag := range strings.FieldsSeq(found.Optional) {
		switch {
		case strings.HasPrefix(tag, "shared:"):
			return found.Mountpoint, Shared
		case strings.HasPrefix(tag, "master:"):
			kind = Slave
		}
	}
	return found.Mountpoint, kind
}

// findDevices gives the nodes of each CRI device; a directory has many.
func findDevices(devices []*runtime.Device) ([][]specs.LinuxDevice, error) {
	out := make([][]specs.LinuxDevice, len(devices))
	for i, d := range devices {
		nodes, err := deviceNodes(d)
		if err != nil {
			return nil, fmt.Errorf("devices[%d].host_path: %w", i, err)
		}
		out[i] = nodes
	}
	return out, nil
}

func deviceNodes(d *runtime.Device) ([]specs.LinuxDevice, error) {
	if !filepath.IsAbs(d.GetHostPath()) {
		return nil, fmt.Errorf("%s: it must be an absolute path: %w", Shown(d.GetHostPath()), errdefs.ErrInvalidArgument)
	}
	resolved, err := filepath.EvalSymlinks(d.GetHostPath())
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: there is no such device on the node: %w", d.GetHostPath(), errdefs.ErrInvalidArgument)
		}
		return nil, fmt.Errorf("%s cannot be followed: %w", d.GetHostPath(), err)
	}
	target := d.GetContainerPath()
	if target == "" {
		target = d.GetHostPath()
	}
	info, err := os.Stat(resolved)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		node, err := oci.DeviceFromPath(resolved)
		if err != nil {
			return nil, fmt.Errorf("%s: it is not a device: %w: %w", d.GetHostPath(), err, errdefs.ErrInvalidArgument)
		}
		node.Path = path.Clean(target)
		return []specs.LinuxDevice{*node}, nil
	}
	return deviceTree(resolved, target)
}

// deviceTree finds the block and character devices of a directory.
func deviceTree(dir, target string) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	err := filepath.WalkDir(dir, func(p string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.Type()&fs.ModeDevice == 0 {
			return nil
		}
		node, err := oci.DeviceFromPath(p)
		if errors.Is(err, fs.ErrNotExist) { // gone meanwhile
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		node.Path = path.Join(target, strings.TrimPrefix(p, dir))
		out = append(out, *node)
		return nil
	})
	if err == nil && len(out) == 0 {
		err = fmt.Errorf("%s: there is no device in the directory: %w", dir, errdefs.ErrInvalidArgument)
	}
	return out, err
}

func readSeccomp(ref string) (_ []byte, err error) {
	ref = strings.TrimPrefix(ref, "localhost/")
	if !filepath.IsAbs(ref) {
		return nil, fmt.Errorf("%s: it must be an absolute path: %w", Shown(ref), errdefs.ErrInvalidArgument)
	}
	f, err := os.OpenFile(ref, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not hang us
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: there is no such profile on the node: %w", ref, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s: it is not a file: %w", ref, errdefs.ErrInvalidArgument))
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSeccompProfile+1))
	if err == nil && len(data) > maxSeccompProfile {
		err = fmt.Errorf("%s: it is larger than %d bytes: %w", ref, maxSeccompProfile, errdefs.ErrInvalidArgument)
	}
	return data, err
}
