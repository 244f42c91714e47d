package e2e

import (
	"strings"
	"testing"
)

// gVisor is the handler that test-gvisor runs this suite on. It has a kernel of
// its own, in one process a pod.
const gVisor = "runsc"

// notInGVisor are the tests that gVisor does not pass, each with what it does
// otherwise. berth has no part in any of it.
var notInGVisor = map[string]string{
	"TestResources":                   "limits are the pod's: a container's cgroup on this machine has none",
	"TestUpdateContainerResources":    "limits are the pod's: a container's cgroup on this machine has none",
	"TestOOMKilled":                   "limits are the pod's: memory is taken from the pod's process, and the pod is killed whole",
	"TestSandboxHasNoProcess":         "a sandbox has one: that is how a shim of this kind works",
	"TestShm":                         "/dev/shm is a tmpfs inside, without the pod's size",
	"TestMountsOverrideDefaults":      "/dev/shm is a tmpfs inside, whatever is mounted there",
	"TestMountPropagation/both_ways":  "shared mounts are refused",
	"TestDevices":                     "devices of this machine are not there",
	"TestMaskedAndReadOnlyPaths":      "masked and read-only paths are ignored: its /proc shows nothing of this machine",
	"TestSysctls":                     "few sysctls are there",
	"TestNamespaces/host_network":     "the host's namespaces are not shared",
	"TestNamespaces/host_IPC_and_PID": "the host's namespaces are not shared",
	"TestNamespaces/target_PID":       "a container's PID namespace cannot be joined by another but the pod's",
}

// supported skips what the handler is known not to do.
func supported(t *testing.T, handler string) {
	t.Helper()
	if handler != gVisor {
		return
	}
	parts := strings.Split(t.Name(), "/") // TEST/TARGET/...
	name := strings.Join(append(parts[:1], parts[2:]...), "/")
	if why := notInGVisor[name]; why != "" {
		t.Skipf("not in gVisor: %s", why)
	}
}
