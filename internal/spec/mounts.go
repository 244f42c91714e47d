package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// Propagation is how the mount that a path on the host lies on is shared.
type Propagation int

const (
	// Private mounts neither send nor receive.
	Private Propagation = iota
	// Slave mounts receive.
	Slave
	// Shared mounts send and receive.
	Shared
)

// A HostPath is the source of a CRI mount, as PrepareMounts found it. That of an
// image is where the image will be.
type HostPath struct {
	// Path has no symbolic links.
	Path string
	// MountPoint is the mount that Path lies on, and Propagation how it is
	// shared. Both are set only for CRI mounts with a propagation.
	MountPoint  string
	Propagation Propagation
}

// defaultMounts are what each container has unless a CRI mount replaces it.
func (b *builder) defaultMounts() []specs.Mount {
	sys, cgroup := "ro", "ro"
	if b.privileged() {
		sys, cgroup = "rw", "rw"
	}
	cgroupOptions := []string{"nosuid", "noexec", "nodev", "relatime", cgroup}
	if !b.ownCgroupNamespace() {
		// Mounting the host's own cgroup2 again changes it: what is set there
		// has to be set again or it is lost for the node.
		cgroupOptions = append(cgroupOptions, b.in.Kernel.CgroupOptions...)
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		b.sysMount(sys),
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: cgroupOptions},
	}
	if b.in.Shm == "" && !HostIPC(b.in.Sandbox) {
		mounts = append(mounts, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
			Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}})
	}
	return mounts
}

// sysMount is sysfs, or the node's where the kernel refuses a new one: it shows
// a network namespace, and who mounts it must have rights in that.
func (b *builder) sysMount(access string) specs.Mount {
	if HostNetwork(b.in.Sandbox) && UserNamespace(b.in.Sandbox) != nil {
		if access == "ro" && b.in.Kernel.RecursiveReadOnly {
			access = "rro"
		}
		return specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", access}}
	}
	return specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}
}

// podMounts are the sandbox's files and the image's volumes.
func (b *builder) podMounts() []specs.Mount {
	var out []specs.Mount
	bind := func(source, destination, mode string) {
		if source != "" {
			out = append(out, specs.Mount{Source: source, Destination: destination, Type: "bind", Options: []string{"rbind", "rprivate", mode}})
		}
	}
	mode := "rw"
	if b.sc.GetReadonlyRootfs() {
		mode = "ro"
	}
	bind(b.in.Hostname, "/etc/hostname", mode)
	bind(b.in.Hosts, "/etc/hosts", mode)
	bind(b.in.ResolvConf, "/etc/resolv.conf", mode)
	shm := b.in.Shm
	if HostIPC(b.in.Sandbox) {
		shm = "/dev/shm"
	}
	bind(shm, "/dev/shm", "rw")
	for _, v := range b.in.Volumes {
		bind(v.HostPath, path.Join("/", v.ContainerPath), "rw")
	}
	return out
}

// mounts puts the defaults first, then all the others by depth, so that none
// hides another. A CRI mount replaces what would be at its place; one at /dev
// or /sys replaces the defaults below as well, for it brings its own.
func (b *builder) mounts() error {
	asked := b.in.Container.GetMounts()
	if got := len(b.in.Host.Mounts); got != len(asked) {
		return fmt.Errorf("spec of container %s: %d mounts, but %d prepared: %w", b.in.ID, len(asked), got, errdefs.ErrInternal)
	}
	var others []specs.Mount
	taken := map[string]bool{}
	for i, m := range asked {
		mount, err := b.mount(m, b.in.Host.Mounts[i])
		if err != nil {
			return fmt.Errorf("mounts[%d].%w", i, err)
		}
		if taken[mount.Destination] {
			return twice(i, m)
		}
		taken[mount.Destination] = true
		others = append(others, mount)
	}
	for _, m := range b.podMounts() {
		if !taken[m.Destination] {
			others = append(others, m)
		}
	}
	for _, m := range b.defaultMounts() {
		replaced := taken[m.Destination] ||
			taken["/dev"] && strings.HasPrefix(m.Destination, "/dev/") ||
			taken["/sys"] && strings.HasPrefix(m.Destination, "/sys/")
		if !replaced {
			b.spec.Mounts = append(b.spec.Mounts, m)
		}
	}
	slices.SortStableFunc(others, func(x, y specs.Mount) int { return depth(x.Destination) - depth(y.Destination) })
	b.spec.Mounts = append(b.spec.Mounts, others...)
	return nil
}

func depth(p string) int { return strings.Count(path.Clean(p), "/") }

// mount is the bind mount of one CRI mount.
func (b *builder) mount(m *runtime.Mount, host HostPath) (specs.Mount, error) {
	if err := CheckMount(m); err != nil {
		return specs.Mount{}, err
	}
	access := "rw"
	switch {
	case m.GetRecursiveReadOnly() && !b.in.Kernel.RecursiveReadOnly:
		return specs.Mount{}, fmt.Errorf("recursive_read_only: the kernel has no mount_setattr (Linux 5.12): %w: %w", crierrors.ErrRROUnsupported, errdefs.ErrFailedPrecondition)
	case m.GetRecursiveReadOnly():
		access = "rro"
	case m.GetReadonly():
		access = "ro"
	}
	if m.GetImage() != nil {
		return volumeMount(m, host, access), nil
	}
	propagation, err := b.propagation(m, host)
	if err != nil {
		return specs.Mount{}, err
	}
	return specs.Mount{
		Source: host.Path, Destination: path.Clean(m.GetContainerPath()), Type: "bind",
		Options:     append([]string{"rbind", propagation, access}, m.GetMountOptions()...),
		UIDMappings: ociMappings(m.GetUidMappings()), GIDMappings: ociMappings(m.GetGidMappings()),
	}, nil
}

// volumeMount is the mount of an image, of which nothing is executed unless the
// mount's options say so. Its IDs are mapped by the snapshotter already.
func volumeMount(m *runtime.Mount, host HostPath, access string) specs.Mount {
	return specs.Mount{
		Source: host.Path, Destination: path.Clean(m.GetContainerPath()), Type: "bind",
		Options: append([]string{"rbind", "rprivate", access, "noexec"}, m.GetMountOptions()...),
	}
}

// propagation of a mount. What the container is to receive from or send to the
// host needs the host's mount shared, and the container's root not private.
func (b *builder) propagation(m *runtime.Mount, host HostPath) (string, error) {
	root := &b.spec.Linux.RootfsPropagation
	switch p := m.GetPropagation(); {
	case p == runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER && host.Propagation != Private:
		if *root == "" {
			*root = "rslave"
		}
		return "rslave", nil
	case p == runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL && host.Propagation == Shared:
		*root = "rshared"
		return "rshared", nil
	case p != runtime.MountPropagation_PROPAGATION_PRIVATE:
		return "", fmt.Errorf("propagation: %s, but %s lies on the mount %s, which is not shared: run `mount --make-rshared %s` on the node: %w",
			p, host.Path, host.MountPoint, host.MountPoint, errdefs.ErrFailedPrecondition)
	}
	return "rprivate", nil
}

// mountOptions are the flags of one mount that a CRI mount may set. Readonly
// and propagation have fields of their own.
var mountOptions = []string{
	"noexec", "nodev", "nosuid", "exec", "dev", "suid", "noatime", "nodiratime", "relatime", "strictatime", "nosymfollow",
	"rnoexec", "rnodev", "rnosuid", "rexec", "rdev", "rsuid", "rnoatime", "rnodiratime", "rrelatime", "rstrictatime", "rnosymfollow",
}

// reserved are places where an image's volume would hide what each container
// has.
var reserved = []string{
	"/", "/proc", "/dev", "/dev/pts", "/dev/mqueue", "/dev/shm", "/sys", "/sys/fs/cgroup", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf",
}

// VolumePaths are the paths for which Input.Volumes needs a directory: the
// volumes that the image declares and no CRI mount is at. They are clean and
// sorted.
func VolumePaths(image *ocispec.ImageConfig, c *runtime.ContainerConfig) []string {
	if image == nil {
		return nil
	}
	taken := map[string]bool{}
	for _, own := range reserved {
		taken[own] = true
	}
	for _, m := range c.GetMounts() {
		taken[path.Clean(m.GetContainerPath())] = true
	}
	var out []string
	for volume := range image.Volumes {
		volume = path.Join("/", volume)
		if !taken[volume] {
			taken[volume] = true
			out = append(out, volume)
		}
	}
	slices.Sort(out)
	return out
}
