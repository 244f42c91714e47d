package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// leastKernel has all system calls and flags that berth cannot do without:
// openat2 (5.6), PIDFD_NONBLOCK (5.10), CLOSE_RANGE_CLOEXEC (5.11).
var leastKernel = [2]int{5, 11}

func (e *exam) kernel() {
	release := e.read("proc/sys/kernel/osrelease")
	version, ok := parseRelease(release)
	switch {
	case !ok:
		e.warn("kernel", fmt.Sprintf("berth wants Linux %d.%d or newer", leastKernel[0], leastKernel[1]), "release %q is not understood", release)
	case version[0] < leastKernel[0] || version[0] == leastKernel[0] && version[1] < leastKernel[1]:
		e.fail("kernel", fmt.Sprintf("use Linux %d.%d or newer", leastKernel[0], leastKernel[1]), "Linux %s is too old", release)
	default:
		e.ok("kernel", "Linux %s%s", release, without(version))
	}
}

// newerKernel is what a kernel older than a version lacks, with which berth
// does without.
var newerKernel = []struct {
	version [2]int
	what    string
}{
	{[2]int{5, 12}, "no read-only mounts that hold for what is mounted below them, nor mounts with other IDs (5.12)"},
	{[2]int{5, 19}, "pods with hostUsers: false are refused on overlayfs (5.19)"},
	{[2]int{6, 15}, "the exit code of a container that ends while no supervisor runs is reported as 255 (6.15)"},
}

// without says what is missing in a kernel.
func without(version [2]int) string {
	var missing []string
	for _, n := range newerKernel {
		if version[0] < n.version[0] || version[0] == n.version[0] && version[1] < n.version[1] {
			missing = append(missing, n.what)
		}
	}
	if len(missing) == 0 {
		return ""
	}
	return "; " + strings.Join(missing, "; ")
}

// parseRelease takes the first two numbers of a release such as 6.1.0-13-amd64.
func parseRelease(release string) (version [2]int, ok bool) {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return version, false
	}
	for i := range version {
		digits := strings.TrimRight(strings.SplitN(parts[i], "-", 2)[0], "+")
		n, err := strconv.Atoi(digits)
		if err != nil {
			return version, false
		}
		version[i] = n
	}
	return version, true
}

func (e *exam) privileges() {
	if unix.Geteuid() != 0 {
		e.fail("privileges", "run as root: sudo berth doctor", "not root; checks below may fail for that alone")
		return
	}
	caps, err := capability.NewPid2(0)
	if err == nil {
		err = caps.Load()
	}
	if err != nil {
		e.warn("privileges", "", "root; capabilities could not be read: %v", err)
		return
	}
	var missing []string
	for _, c := range []capability.Cap{capability.CAP_SYS_ADMIN, capability.CAP_NET_ADMIN, capability.CAP_SYS_PTRACE, capability.CAP_MKNOD,
		capability.CAP_CHOWN, capability.CAP_DAC_OVERRIDE, capability.CAP_FOWNER, capability.CAP_SETUID, capability.CAP_SETGID, capability.CAP_KILL} {
		if !caps.Get(capability.EFFECTIVE, c) {
			missing = append(missing, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	switch {
	case len(missing) > 0:
		e.fail("privileges", "give the daemon these capabilities", "root without %s", strings.Join(missing, ", "))
	case !caps.Get(capability.EFFECTIVE, capability.CAP_SYS_RESOURCE):
		e.warn("privileges", "give the daemon CAP_SYS_RESOURCE, or accept that out-of-memory scores are not lowered and limits not raised",
			"root without CAP_SYS_RESOURCE")
	default:
		e.ok("privileges", "root with the capabilities that berth uses")
	}
}

func (e *exam) namespaces() {
	var missing []string
	for _, kind := range []string{"mnt", "net", "ipc", "uts", "pid", "cgroup"} {
		if !e.exists("proc/self/ns/" + kind) {
			missing = append(missing, kind)
		}
	}
	if len(missing) > 0 {
		e.fail("namespaces", "use a kernel with CONFIG_NAMESPACES and all of its kinds", "the kernel has no %s namespaces", strings.Join(missing, ", "))
		return
	}
	e.ok("namespaces", "mount, network, IPC, UTS, PID, cgroup")
}

// userNamespaces are for pods with hostUsers: false.
func (e *exam) userNamespaces() {
	const check, refused = "user namespaces", "; until then pods with hostUsers: false are refused"
	most := e.read("proc/sys/user/max_user_namespaces")
	switch {
	case !e.exists("proc/self/ns/user"):
		e.warn(check, "use a kernel with CONFIG_USER_NS"+refused, "the kernel has none")
		return
	case most == "0":
		e.warn(check, "sysctl -w user.max_user_namespaces=15000"+refused, "user.max_user_namespaces is 0")
		return
	case unix.Geteuid() != 0 || e.Config.Containerd.Snapshotter != "overlayfs":
		e.ok(check, "the kernel allows %s", most)
		return
	}
	parent := nearest(e.Config.Root)
	if err := onThread(func() error { return inScratch(parent, tryMappedOverlay) }); err != nil {
		e.warn(check, `use Linux 5.19 or newer, and for "root" a file system whose mounts can have other IDs, such as ext4 or xfs`+refused,
			"the kernel allows %s, but an overlay with other IDs in %s: %v", most, parent, err)
		return
	}
	e.ok(check, "the kernel allows %s, and overlays with other IDs in %s", most, parent)
}

func (e *exam) seccomp() {
	actions := e.read("proc/sys/kernel/seccomp/actions_avail")
	if actions == "" {
		e.warn("seccomp", "pods that ask for the profile RuntimeDefault or Localhost are refused; use a kernel with CONFIG_SECCOMP_FILTER", "the kernel has none")
		return
	}
	e.ok("seccomp", "%s", actions)
}

func (e *exam) securityModules() {
	// None is how many machines are, and keeps no pod from running.
	modules := e.read("sys/kernel/security/lsm")
	if modules == "" {
		modules = "none that berth uses"
	}
	if strings.HasPrefix(e.read("sys/module/apparmor/parameters/enabled"), "Y") && e.program("apparmor_parser") == "" {
		e.warn("security modules", "apt-get install apparmor: without its program berth cannot load its default profile, and containers run without one",
			"%s; apparmor_parser is not installed", modules)
		return
	}
	e.ok("security modules", "%s", modules)
}

// program is the path of an installed program, "" where it is not installed.
func (e *exam) program(name string) string {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(filepath.Join(e.Root, path)); err == nil && st.Mode().IsRegular() {
			return path
		}
	}
	return ""
}

func (e *exam) forwarding() {
	if e.read("proc/sys/net/ipv4/ip_forward") != "1" {
		e.warn("IP forwarding", "sysctl -w net.ipv4.ip_forward=1 (the bridge plugin does it with the first pod)", "net.ipv4.ip_forward is off")
		return
	}
	if e.Config.Network.DefaultSubnet6 != "" && e.read("proc/sys/net/ipv6/conf/all/forwarding") != "1" {
		e.warn("IP forwarding", "sysctl -w net.ipv6.conf.all.forwarding=1 (the bridge plugin does it with the first pod)", "net.ipv6.conf.all.forwarding is off")
		return
	}
	e.ok("IP forwarding", "net.ipv4.ip_forward is on")
}

// bridgeFilter is what kube-proxy wants of bridges.
func (e *exam) bridgeFilter() {
	const check = "bridge filter"
	switch value := e.read("proc/sys/net/bridge/bridge-nf-call-iptables"); value {
	case "1":
		e.ok(check, "net.bridge.bridge-nf-call-iptables is on")
	case "":
		e.ok(check, "br_netfilter is not loaded; kube-proxy in mode iptables needs it where pods are on a bridge (modprobe br_netfilter; berth.service does it)")
	default:
		e.warn(check, "sysctl -w net.bridge.bridge-nf-call-iptables=1: else a pod does not reach the services of pods on its own node", "net.bridge.bridge-nf-call-iptables is %s", value)
	}
}

// limits are those that machines with many pods run into.
func (e *exam) limits() {
	for _, l := range []struct {
		path  string
		least int
	}{
		{"fs/inotify/max_user_instances", 128},
		{"fs/inotify/max_user_watches", 8192},
		{"kernel/pid_max", 32768},
		{"fs/file-max", 65536},
	} {
		name := strings.ReplaceAll(l.path, "/", ".")
		text := e.read("proc/sys/" + l.path)
		n, err := strconv.ParseUint(text, 10, 64)
		if err == nil && n < uint64(l.least) {
			e.warn("limits", fmt.Sprintf("sysctl -w %s=%d", name, l.least), "%s is %s", name, text)
			return
		}
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil && files.Max < 4096 {
		e.warn("limits", "raise the limit of open files (LimitNOFILE= in the unit, ulimit -n)", "at most %d open files", files.Max)
		return
	}
	e.ok("limits", "open files, inotify instances, PIDs")
}
