package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Kernel is what the machine and the daemon's own rights allow. Read it once,
// when the daemon starts.
type Kernel struct {
	// Hostname is the node's.
	Hostname string
	// CgroupVersion is 1 (hybrid too) or 2.
	CgroupVersion int
	// CgroupOptions are the options of the host's cgroup2 mount that a
	// container which mounts it again must keep.
	CgroupOptions []string
	// SwapAccounting says whether swap can be limited. ReadKernel leaves it
	// out: to tell, a cgroup may have to be made (host.Cgroups.SwapLimits).
	SwapAccounting bool
	// HugePages are the page sizes that can be limited ("2MB"); none without
	// the hugetlb controller.
	HugePages []string
	// Seccomp, AppArmor and SELinux are there and enabled.
	Seccomp, AppArmor, SELinux bool
	// RecursiveReadOnly: mount_setattr is there.
	RecursiveReadOnly bool
	// UserNamespaces are there and allowed.
	UserNamespaces bool
	// Capabilities are the daemon's own, the most that a container can get.
	// nil stands for all.
	Capabilities []string
	// OOMScoreAdj is the daemon's own.
	OOMScoreAdj int
}

func (k Kernel) capabilities() []string {
	if k.Capabilities == nil {
		return known
	}
	return k.Capabilities
}

func (k Kernel) sysResource() bool { return slices.Contains(k.capabilities(), "CAP_SYS_RESOURCE") }

// ReadKernel asks this machine.
func ReadKernel() (Kernel, error) {
	k, err := readKernel("/")
	if err != nil {
		return Kernel{}, fmt.Errorf("what the kernel offers: %w", err)
	}
	if k.Hostname, err = os.Hostname(); err != nil {
		return Kernel{}, err
	}
	// No path is given, so the call can only say that it exists.
	err = unix.MountSetattr(-1, "", 0, &unix.MountAttr{})
	k.RecursiveReadOnly = !errors.Is(err, unix.ENOSYS)
	return k, nil
}

// readKernel reads files below root, which tests give.
func readKernel(root string) (Kernel, error) {
	at := func(p string) string { return filepath.Join(root, p) }
	k := Kernel{CgroupVersion: 1}
	status, err := os.ReadFile(at("proc/self/status"))
	if err != nil {
		return k, err
	}
	k.Capabilities, k.Seccomp, err = parseStatus(status)
	if err != nil {
		return k, err
	}
	adj, err := os.ReadFile(at("proc/self/oom_score_adj"))
	if err != nil {
		return k, err
	}
	if k.OOMScoreAdj, err = strconv.Atoi(string(bytes.TrimSpace(adj))); err != nil {
		return k, fmt.Errorf("/proc/self/oom_score_adj: %w", err)
	}
	enabled, err := os.ReadFile(at("sys/module/apparmor/parameters/enabled"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	k.AppArmor = bytes.HasPrefix(enabled, []byte("Y"))
	k.SELinux = exists(at("sys/fs/selinux/enforce"))
	most, err := os.ReadFile(at("proc/sys/user/max_user_namespaces"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	k.UserNamespaces = err == nil && string(bytes.TrimSpace(most)) != "0"
	return k, readCgroups(at("sys/fs/cgroup"), at("sys/kernel/mm/hugepages"), at("proc/self/mountinfo"), &k)
}

// parseStatus reads /proc/PID/status: capabilities both effective and in the
// bounding set, and whether the kernel has seccomp.
func parseStatus(status []byte) (names []string, seccomp bool, err error) {
	mask := ^uint64(0)
	for line := range strings.SplitSeq(string(status), "\n") {
		key, value, _ := strings.Cut(line, ":")
		switch key {
		case "CapEff", "CapBnd":
			bits, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				return nil, false, fmt.Errorf("/proc/self/status: %s: %w", key, err)
			}
			mask &= bits
		case "Seccomp":
			seccomp = true
		}
	}
	names = []string{}
	for i, name := range known {
		if mask&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names, seccomp, nil
}

func readCgroups(cgroup, hugepages, mounts string, k *Kernel) error {
	var hugetlb bool
	controllers, err := os.ReadFile(filepath.Join(cgroup, "cgroup.controllers"))
	switch {
	case err == nil:
		k.CgroupVersion = 2
		hugetlb = slices.Contains(strings.Fields(string(controllers)), "hugetlb")
		if k.CgroupOptions, err = cgroupOptions(mounts); err != nil {
			return err
		}
	case errors.Is(err, fs.ErrNotExist):
		hugetlb = exists(filepath.Join(cgroup, "hugetlb"))
	default:
		return err
	}
	if !hugetlb {
		return nil
	}
	dirs, err := os.ReadDir(hugepages)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, d := range dirs {
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(d.Name(), "hugepages-"), "kB"), 10, 64)
		if err == nil {
			k.HugePages = append(k.HugePages, pageSize(kib))
		}
	}
	return nil
}

// pageSize names a size as the cgroup files do.
func pageSize(kib uint64) string {
	switch {
	case kib >= 1<<20:
		return fmt.Sprintf("%dGB", kib>>20)
	case kib >= 1<<10:
		return fmt.Sprintf("%dMB", kib>>10)
	}
	return fmt.Sprintf("%dKB", kib)
}

func cgroupOptions(mounts string) ([]string, error) {
	f, err := os.Open(mounts)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	infos, err := mountinfo.GetMountsFromReader(f, mountinfo.SingleEntryFilter("/sys/fs/cgroup"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, info := range infos {
		for option := range strings.SplitSeq(info.VFSOptions, ",") {
			if option == "nsdelegate" || option == "memory_recursiveprot" {
				out = append(out, option)
			}
		}
	}
	return out, nil
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}
