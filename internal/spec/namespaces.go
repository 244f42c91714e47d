package spec

import (
	"fmt"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PIDMode is how a container's PID namespace is chosen: POD, CONTAINER, NODE
// or TARGET with the target's ID. A container that says nothing has what its
// sandbox says; one that says POD means the sandbox's, which may be the node's.
func PIDMode(sandbox *runtime.PodSandboxConfig, c *runtime.ContainerConfig) (mode runtime.NamespaceMode, target string, err error) {
	const field = "linux.security_context.namespace_options.pid"
	pod := sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid()
	own := c.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if own == nil {
		return pod, "", nil
	}
	switch mode = own.GetPid(); mode {
	case runtime.NamespaceMode_CONTAINER:
	case runtime.NamespaceMode_POD:
		if pod == runtime.NamespaceMode_CONTAINER {
			return 0, "", fmt.Errorf("%s: POD, but the sandbox was made with CONTAINER and has no PID namespace to share: %w", field, errdefs.ErrInvalidArgument)
		}
		mode = pod
	case runtime.NamespaceMode_NODE:
		if pod != runtime.NamespaceMode_NODE {
			return 0, "", fmt.Errorf("%s: NODE, but the sandbox was made with %s: %w", field, pod, errdefs.ErrInvalidArgument)
		}
	case runtime.NamespaceMode_TARGET:
		if target = own.GetTargetId(); target == "" {
			return 0, "", fmt.Errorf("%s: TARGET needs target_id, the ID of a container in the pod: %w", field, errdefs.ErrInvalidArgument)
		}
	default:
		return 0, "", fmt.Errorf("%s: %d is no mode; use POD, CONTAINER, NODE or TARGET: %w", field, mode, errdefs.ErrInvalidArgument)
	}
	return mode, target, nil
}

// namespaces are the sandbox's, which are pinned and have their hostname and
// sysctls set; so the spec sets neither. One without a path is the host's.
func (b *builder) namespaces() error {
	ns := b.in.Namespaces
	out := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	join := func(kind specs.LinuxNamespaceType, path string) {
		if path != "" {
			out = append(out, specs.LinuxNamespace{Type: kind, Path: path})
		}
	}
	join(specs.NetworkNamespace, ns.Net)
	join(specs.IPCNamespace, ns.IPC)
	join(specs.UTSNamespace, ns.UTS)
	mode, _, err := PIDMode(b.in.Sandbox, b.in.Container)
	if err != nil {
		return err
	}
	switch mode {
	case runtime.NamespaceMode_CONTAINER:
		out = append(out, specs.LinuxNamespace{Type: specs.PIDNamespace})
	case runtime.NamespaceMode_POD, runtime.NamespaceMode_TARGET:
		if ns.PID == "" {
			return fmt.Errorf("linux.security_context.namespace_options.pid: %s, but the namespace to join is gone: the sandbox's init or the target container does not run: %w", mode, errdefs.ErrFailedPrecondition)
		}
		join(specs.PIDNamespace, ns.PID)
	}
	if b.ownCgroupNamespace() {
		out = append(out, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	b.spec.Linux.Namespaces = out
	return b.userNamespace()
}

// ownCgroupNamespace: with v2 a container sees its own cgroup as the root,
// unless it is privileged and so may manage the node's.
func (b *builder) ownCgroupNamespace() bool {
	return b.in.Kernel.CgroupVersion == 2 && !b.privileged()
}

// HostIPC says whether the sandbox uses the host's IPC namespace.
func HostIPC(sandbox *runtime.PodSandboxConfig) bool {
	return sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetIpc() == runtime.NamespaceMode_NODE
}

// HostNetwork says whether the sandbox uses the host's network namespace, and
// with it the host's UTS namespace.
func HostNetwork(sandbox *runtime.PodSandboxConfig) bool {
	return sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtime.NamespaceMode_NODE
}
