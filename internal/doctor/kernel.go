package doctor

import (
	"fmt"
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
		e.ok("kernel", "Linux %s", release)
	}
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

// userNamespaces is of no use to pods yet, whatever the kernel has.
func (e *exam) userNamespaces() {
	most := e.read("proc/sys/user/max_user_namespaces")
	if !e.exists("proc/self/ns/user") {
		most = "0"
	}
	e.ok("user namespaces", "not used: berth refuses pods with hostUsers: false so far (the kernel allows %s)", most)
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
	e.ok("security modules", "%s", modules)
}

func (e *exam) forwarding() {
	if e.read("proc/sys/net/ipv4/ip_forward") != "1" {
		e.warn("IP forwarding", "sysctl -w net.ipv4.ip_forward=1 (the bridge plugin does it with the first pod)", "net.ipv4.ip_forward is off")
		return
	}
	e.ok("IP forwarding", "net.ipv4.ip_forward is on")
}

// limits are those that machines with many pods run into.
func (e *exam) limits() {
	for _, l := range []struct {
		path  string
		least int
	}{
		{"fs/inotify/max_user_instances", 128},
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
