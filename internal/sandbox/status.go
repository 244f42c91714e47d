package sandbox

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/host"
	"berth/internal/record"
)

// Shown tells whether clients are told of the sandbox: one that is being made
// becomes ready or vanishes.
func Shown(box *record.Sandbox) bool { return box.State != record.SandboxCreating }

func state(box *record.Sandbox) runtime.PodSandboxState {
	if box.State == record.SandboxReady {
		return runtime.PodSandboxState_SANDBOX_READY
	}
	return runtime.PodSandboxState_SANDBOX_NOTREADY
}

// Summary is the sandbox as a list shows it.
func Summary(box *record.Sandbox) *runtime.PodSandbox {
	return &runtime.PodSandbox{
		Id: box.ID, Metadata: box.Config.GetMetadata(), State: state(box), CreatedAt: box.CreatedAt.UnixNano(),
		Labels: box.Config.GetLabels(), Annotations: box.Config.GetAnnotations(), RuntimeHandler: box.RuntimeHandler,
	}
}

// Status is the sandbox as PodSandboxStatus shows it.
func Status(box *record.Sandbox) *runtime.PodSandboxStatus {
	status := &runtime.PodSandboxStatus{
		Id: box.ID, Metadata: box.Config.GetMetadata(), State: state(box), CreatedAt: box.CreatedAt.UnixNano(),
		Labels: box.Config.GetLabels(), Annotations: box.Config.GetAnnotations(), RuntimeHandler: box.RuntimeHandler,
		Network: &runtime.PodSandboxNetworkStatus{},
		Linux:   &runtime.LinuxPodSandboxStatus{Namespaces: &runtime.Namespace{Options: options(box)}},
	}
	if box.State == record.SandboxReady {
		for i, ip := range box.IPs {
			if i == 0 {
				status.Network.Ip = ip
				continue
			}
			status.Network.AdditionalIps = append(status.Network.AdditionalIps, &runtime.PodIP{Ip: ip})
		}
	}
	return status
}

// missing names the first thing without which a ready sandbox is of no use.
func (s *Service) missing(box *record.Sandbox) string {
	for kind, path := range s.namespaces(box) {
		if !isNamespace(path) {
			return kind + " namespace"
		}
	}
	if _, err := os.Stat(s.Paths.ResolvConf(box.ID)); err != nil {
		return "files"
	}
	if box.Init != nil && !(host.Process{PID: box.Init.PID, Start: box.Init.Start}).Alive() {
		return "init"
	}
	return ""
}

// isNamespace tells a pinned namespace from the empty file below its mount.
func isNamespace(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(strings.TrimSuffix(path, "/"), &fs) == nil && fs.Type == unix.NSFS_MAGIC
}
