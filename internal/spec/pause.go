package spec

import (
	"fmt"
	"maps"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PauseProgram is the path of the one program in a sandbox container's root.
const PauseProgram = "/pause"

const (
	// pauseOOMScoreAdj is a kubelet's for what keeps a pod together.
	pauseOOMScoreAdj = -998
	// pauseID is its user and group.
	pauseID = 65535
)

// What shims that make a virtual machine read of the whole pod, beside the
// annotations that a container has.
const (
	annotationLogDirectory = "io.kubernetes.cri.sandbox-log-directory"
	annotationCPUPeriod    = "io.kubernetes.cri.sandbox-cpu-period"
	annotationCPUQuota     = "io.kubernetes.cri.sandbox-cpu-quota"
	annotationCPUShares    = "io.kubernetes.cri.sandbox-cpu-shares"
	annotationMemory       = "io.kubernetes.cri.sandbox-memory"
)

// Pause makes the spec of the container by which a shim makes a sandbox of its
// own: the first of a pod and the last, which does nothing. Of the Input it
// takes what is the pod's: ID and SandboxID are the same, Container and Image
// are not used. Unlike a container's its spec has hostname and sysctls, for the
// shim may have a kernel of its own to set them in.
func Pause(in Input) (*specs.Spec, error) {
	if in.Sandbox == nil || in.ID == "" || in.ID != in.SandboxID {
		return nil, fmt.Errorf("spec of the sandbox container of pod %s: the configuration is required, and one ID: %w", in.SandboxID, errdefs.ErrInvalidArgument)
	}
	b := &builder{in: &in, spec: &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: rootfs, Readonly: true},
		Process: &specs.Process{
			Args: []string{PauseProgram}, Cwd: "/", NoNewPrivileges: true,
			User:         specs.User{UID: pauseID, GID: pauseID},
			Capabilities: &specs.LinuxCapabilities{},
		},
		Linux: &specs.Linux{CgroupsPath: in.CgroupsPath, Resources: &specs.LinuxResources{}},
	}}
	adj := pauseOOMScoreAdj
	if !in.Kernel.sysResource() {
		adj = max(adj, in.Kernel.OOMScoreAdj)
	}
	b.spec.Process.OOMScoreAdj = &adj
	b.pauseAnnotations()
	b.pauseNamespaces()
	b.spec.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
	}
	if in.Shm != "" && !HostIPC(in.Sandbox) {
		b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: in.Shm, Options: []string{"rbind", "ro"}})
	}
	return b.spec, nil
}

func (b *builder) pauseAnnotations() {
	b.annotations()
	out := b.spec.Annotations
	out[annotationType] = "sandbox"
	delete(out, annotationContainerName)
	delete(out, annotationImageName)
	if dir := b.in.Sandbox.GetLogDirectory(); dir != "" {
		out[annotationLogDirectory] = dir
	}
	if r := b.in.Sandbox.GetLinux().GetResources(); r != nil {
		out[annotationCPUPeriod] = strconv.FormatInt(r.GetCpuPeriod(), 10)
		out[annotationCPUQuota] = strconv.FormatInt(r.GetCpuQuota(), 10)
		out[annotationCPUShares] = strconv.FormatInt(r.GetCpuShares(), 10)
		out[annotationMemory] = strconv.FormatInt(r.GetMemoryLimitInBytes(), 10)
	}
}

// pauseNamespaces joins those that are pinned. The PID namespace is its own,
// which containers join where the pod shares one; on a node's it is the node's.
func (b *builder) pauseNamespaces() {
	ns := b.in.Namespaces
	out := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	for _, join := range []specs.LinuxNamespace{
		{Type: specs.NetworkNamespace, Path: ns.Net}, {Type: specs.IPCNamespace, Path: ns.IPC}, {Type: specs.UTSNamespace, Path: ns.UTS},
	} {
		if join.Path != "" {
			out = append(out, join)
		}
	}
	pod := b.in.Sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if pod.GetPid() != runtime.NamespaceMode_NODE {
		out = append(out, specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	if ns.UTS != "" {
		b.spec.Hostname = b.in.Sandbox.GetHostname()
	}
	if sysctls := b.in.Sandbox.GetLinux().GetSysctls(); len(sysctls) > 0 {
		b.spec.Linux.Sysctl = maps.Clone(sysctls)
	}
	b.spec.Linux.Namespaces = out
}
