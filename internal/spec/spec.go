// Package spec makes the OCI runtime spec of a container from its CRI
// configuration.
//
// Container, ResolveUser, ResourcesUpdate and what they call are functions of
// values: the same Input gives the same spec, and golden files in testdata show
// it. What has to be asked of the machine first is asked by the functions in
// prepare.go and kernel.go and handed in as values; InjectCDI and BindDevices
// change a spec by what is on the machine. No other file here has effects.
//
// Invariants:
//   - Each field of the CRI's ContainerConfig is honoured or refused by an
//     error that names it; docs/notes/cri-fields.md is the list. Nothing is
//     dropped in silence: what the machine cannot give and a pod can live
//     without comes back as a warning.
//   - A caller's mistake is errdefs.ErrInvalidArgument, what the machine lacks
//     is ErrFailedPrecondition, what berth does not do yet is
//     ErrNotImplemented.
//   - The Input is not changed and not kept.
//
// The package has no state; all functions are safe for concurrent use.
package spec

import (
	"fmt"
	"path"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rootfs is where shims mount the root filesystem, relative to the bundle.
const rootfs = "rootfs"

// Input is all that a container's spec is made of.
type Input struct {
	// ID and SandboxID are the container's and its sandbox's.
	ID, SandboxID string
	// Sandbox and Container are the CRI's configurations; both required.
	Sandbox   *runtime.PodSandboxConfig
	Container *runtime.ContainerConfig
	// Image is the configuration of the image; nil is one that sets nothing.
	Image *ocispec.ImageConfig
	// ImageName is the reference that annotations show.
	ImageName string

	// Namespaces are those that the container joins.
	Namespaces Namespaces
	// CgroupsPath is linux.cgroupsPath in the form of the cgroup driver.
	CgroupsPath string

	// Hostname, Hosts and ResolvConf are files mounted at their places in /etc
	// unless a CRI mount is there; "" is none.
	Hostname, Hosts, ResolvConf string
	// Shm is the sandbox's tmpfs for /dev/shm. It is not used with the host's
	// IPC namespace; "" is a tmpfs of the container's own.
	Shm string

	// User is what ResolveUser gave.
	User User
	// Volumes are the directories of the volumes that the image declares; see
	// VolumePaths.
	Volumes []Volume
	// Host is what Prepare found.
	Host Host
	// Kernel is what ReadKernel found.
	Kernel Kernel

	// PrivilegedWithoutHostDevices is the runtime handler's option.
	PrivilegedWithoutHostDevices bool
	// PodAnnotations and ContainerAnnotations are patterns (path.Match) of the
	// annotations that the runtime is shown.
	PodAnnotations, ContainerAnnotations []string
	// AppArmorDefault is the loaded profile that RuntimeDefault means; "" is
	// none.
	AppArmorDefault string
}

// Namespaces are paths of what a container joins. "" is the host's.
type Namespaces struct {
	Net, IPC, UTS string
	// User is used where the sandbox has a user namespace.
	User string
	// PID is used unless the container has a PID namespace of its own or the
	// host's (see PIDMode): the pod's, or that of the target container.
	PID string
}

// A Volume is a directory on the host for a path that an image declares.
type Volume struct{ ContainerPath, HostPath string }

// builder holds a spec under construction.
type builder struct {
	in       *Input
	sc       *runtime.LinuxContainerSecurityContext // may be nil
	spec     *specs.Spec
	warnings []string
}

// Container makes the spec. The warnings tell what was asked for and is left
// out or lowered because of this machine.
func Container(in Input) (*specs.Spec, []string, error) {
	if in.Sandbox == nil || in.Container == nil {
		return nil, nil, fmt.Errorf("spec of container %s: the configurations of the container and of its sandbox are required: %w", in.ID, errdefs.ErrInvalidArgument)
	}
	if in.Image == nil {
		in.Image = &ocispec.ImageConfig{}
	}
	b := &builder{in: &in, sc: in.Container.GetLinux().GetSecurityContext(), spec: &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: rootfs},
		Process: &specs.Process{},
		Linux:   &specs.Linux{CgroupsPath: in.CgroupsPath, Resources: &specs.LinuxResources{}},
	}}
	b.spec.Root.Readonly = b.sc.GetReadonlyRootfs()
	b.annotations()
	// Security comes after capabilities: the default seccomp profile depends
	// on them. Mounts come after namespaces.
	for _, part := range []func() error{
		b.refuse, b.process, b.capabilities, b.namespaces, b.mounts, b.devices, b.resources, b.security,
	} {
		if err := part(); err != nil {
			return nil, nil, err
		}
	}
	return b.spec, b.warnings, nil
}

func (b *builder) warn(format string, args ...any) {
	b.warnings = append(b.warnings, fmt.Sprintf(format, args...))
}

func (b *builder) privileged() bool { return b.sc.GetPrivileged() }

// refuse turns down what is asked for and not done here at all.
func (b *builder) refuse() error {
	return refused(b.in.Sandbox, b.in.Container)
}

// Annotations that containerd's CRI plugin puts into a spec; shims, cAdvisor
// and others read them.
const (
	annotationType             = "io.kubernetes.cri.container-type"
	annotationContainerName    = "io.kubernetes.cri.container-name"
	annotationImageName        = "io.kubernetes.cri.image-name"
	annotationSandboxID        = "io.kubernetes.cri.sandbox-id"
	annotationSandboxName      = "io.kubernetes.cri.sandbox-name"
	annotationSandboxNamespace = "io.kubernetes.cri.sandbox-namespace"
	annotationSandboxUID       = "io.kubernetes.cri.sandbox-uid"
)

func (b *builder) annotations() {
	out := map[string]string{}
	pass(out, b.in.Sandbox.GetAnnotations(), b.in.PodAnnotations)
	pass(out, b.in.Container.GetAnnotations(), b.in.ContainerAnnotations)
	pod := b.in.Sandbox.GetMetadata()
	out[annotationType] = "container"
	out[annotationContainerName] = b.in.Container.GetMetadata().GetName()
	out[annotationImageName] = b.in.ImageName
	out[annotationSandboxID] = b.in.SandboxID
	out[annotationSandboxName] = pod.GetName()
	out[annotationSandboxNamespace] = pod.GetNamespace()
	out[annotationSandboxUID] = pod.GetUid()
	b.spec.Annotations = out
}

// pass copies the annotations whose keys match a pattern. A bad pattern
// matches nothing; the configuration's check refuses it.
func pass(out, from map[string]string, patterns []string) {
	for key, value := range from {
		for _, pattern := range patterns {
			if ok, err := path.Match(pattern, key); err == nil && ok {
				out[key] = value
			}
		}
	}
}
