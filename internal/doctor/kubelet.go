package doctor

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

// Where kubeadm puts what a kubelet is started with, below Root.
const (
	kubeletConfig = "var/lib/kubelet/config.yaml"
	kubeletFlags  = "var/lib/kubelet/kubeadm-flags.env"
)

// A kubeletConfiguration is what of a kubelet's has to fit the runtime.
type kubeletConfiguration struct {
	ContainerRuntimeEndpoint string `json:"containerRuntimeEndpoint"`
	CgroupDriver             string `json:"cgroupDriver"`
	FailSwapOn               *bool  `json:"failSwapOn"`
	FailCgroupV1             *bool  `json:"failCgroupV1"`
}

var endpointFlag = regexp.MustCompile(`--container-runtime-endpoint[= ]([^\s"']+)`)

// kubelet looks at its configuration, where it is at the usual place.
func (e *exam) kubelet() {
	text, err := os.ReadFile(filepath.Join(e.Root, kubeletConfig))
	if err != nil {
		e.ok("kubelet", "not looked at: there is no /%s", kubeletConfig)
		return
	}
	var c kubeletConfiguration
	if err := yaml.Unmarshal(text, &c); err != nil {
		e.warn("kubelet", "put it right: the kubelet will not start with it", "/%s: %v", kubeletConfig, err)
		return
	}
	where := kubeletConfig
	if m := endpointFlag.FindStringSubmatch(e.read(kubeletFlags)); m != nil { // a flag wins
		c.ContainerRuntimeEndpoint, where = m[1], kubeletFlags
	}
	before := len(e.findings)
	e.endpoint("kubelet", where, c.ContainerRuntimeEndpoint)
	if c.CgroupDriver != "" && e.driver != "" && c.CgroupDriver != e.driver {
		e.warn("kubelet", "take cgroupDriver out of the kubelet's configuration: it asks berth; or set berth's cgroup.driver to the same",
			"cgroupDriver is %s, berth's is %s: a kubelet that does not ask makes pods that cannot start", c.CgroupDriver, e.driver)
	}
	if e.version == 1 && (c.FailCgroupV1 == nil || *c.FailCgroupV1) {
		e.warn("kubelet", "set failCgroupV1: false, or boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1)", "the machine has cgroup v1, on which a kubelet 1.35 or newer does not start")
	}
	if swaps := strings.Count(e.read("proc/swaps"), "\n"); swaps > 0 && (c.FailSwapOn == nil || *c.FailSwapOn) {
		e.warn("kubelet", "swapoff -a, or set failSwapOn: false", "swap is on, with which the kubelet does not start")
	}
	if len(e.findings) == before {
		e.ok("kubelet", "/%s fits", kubeletConfig)
	}
}

// endpoint warns where somebody is told of another socket than berth's.
func (e *exam) endpoint(check, file, endpoint string) {
	if path := strings.TrimPrefix(endpoint, "unix://"); path != e.Config.Address {
		if endpoint == "" {
			endpoint = "nothing"
		}
		e.warn(check, fmt.Sprintf("set it to unix://%s once the node is to use berth", e.Config.Address), "the runtime endpoint in /%s is %s", file, endpoint)
	}
}

// crictl looks at its configuration, if there is one.
func (e *exam) crictl() {
	const file = "etc/crictl.yaml"
	text, err := os.ReadFile(filepath.Join(e.Root, file))
	if err != nil {
		return
	}
	var c struct {
		RuntimeEndpoint string `json:"runtime-endpoint"`
	}
	if err := yaml.Unmarshal(text, &c); err != nil {
		e.warn("crictl", "put it right", "/%s: %v", file, err)
		return
	}
	before := len(e.findings)
	e.endpoint("crictl", file, c.RuntimeEndpoint)
	if len(e.findings) == before {
		e.ok("crictl", "/%s fits", file)
	}
}

// otherSockets are those of other runtimes.
var otherSockets = []struct{ name, path string }{
	{"containerd", "/run/containerd/containerd.sock"},
	{"CRI-O", "/run/crio/crio.sock"},
	{"cri-dockerd", "/run/cri-dockerd.sock"},
}

// others are runtimes that are beside berth on this machine.
func (e *exam) others() {
	var found []string
	for _, other := range otherSockets {
		st, err := os.Lstat(filepath.Join(e.Root, other.path))
		// A link to berth's own containerd is how the kubelet's cAdvisor finds it.
		if err == nil && st.Mode()&fs.ModeSymlink == 0 && other.path != e.Config.Containerd.Address {
			found = append(found, other.name+" at "+other.path)
		}
	}
	switch {
	case len(found) == 0:
		e.ok("other runtimes", "none")
	case e.Config.Network.Exclusive:
		e.warn("other runtimes", "set network.exclusive = false, or stop them for good", "%s, whose pods lose their addresses when berth starts, as network.exclusive is set", strings.Join(found, ", "))
	default:
		e.ok("other runtimes", "%s; berth stands beside them", strings.Join(found, ", "))
	}
}

// socket is the place of the daemon's own.
func (e *exam) socket() {
	st, err := os.Lstat(filepath.Join(e.Root, e.Config.Address))
	switch {
	case err != nil: // the daemon's check says that there is none
	case st.Mode()&fs.ModeSymlink != 0:
		e.fail("socket", "remove the link: berth makes the socket itself", "%s is a symbolic link, left by another runtime perhaps", e.Config.Address)
	case st.Mode()&fs.ModeSocket == 0:
		e.fail("socket", "remove it, or name another address", "%s is no socket (%s)", e.Config.Address, st.Mode())
	}
}

// pressure is what the kernel tells of waiting for CPU, memory and disk.
func (e *exam) pressure() {
	switch {
	case !e.exists("proc/pressure/cpu"):
		e.ok("pressure (PSI)", "the kernel has none, or psi=0: statistics are without it")
	case e.version == 1:
		e.ok("pressure (PSI)", "for the machine alone: cgroup v1 has none for pods")
	default:
		e.ok("pressure (PSI)", "there")
	}
}
