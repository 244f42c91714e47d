package host

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
)

// unifiedMount is where the v2 hierarchy is when it is the only one.
const unifiedMount = "/sys/fs/cgroup"

// A layout says which hierarchies are mounted where.
type layout struct {
	version     int
	controllers []string          // without named hierarchies; sorted
	mounts      map[string]string // by controller; "name=…" for a named hierarchy; "" for the v2 tree
	all         []string          // every hierarchy's mount once, sorted
	systemd     string            // the mount of the hierarchy in which systemd keeps its units, "" if none
}

// readLayout reads proc/self/mountinfo below root.
func readLayout(root string) (layout, error) {
	f, err := os.Open(filepath.Join(root, "proc/self/mountinfo"))
	if err != nil {
		return layout{}, err
	}
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(bufio.NewReader(f), mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return layout{}, fmt.Errorf("mountinfo: %w", err)
	}
	l := layout{version: 1, mounts: map[string]string{}}
	for _, m := range mounts {
		l.add(m, filepath.Join(root, m.Mountpoint))
	}
	unified, hasUnified := l.mounts[""]
	switch {
	case len(l.controllers) > 0:
		l.systemd = l.mounts["name=systemd"]
	case hasUnified:
		l.version = 2
		l.systemd = unified
		data, err := os.ReadFile(filepath.Join(unified, "cgroup.controllers"))
		if err != nil {
			return layout{}, err
		}
		l.controllers = strings.Fields(string(data))
	default:
		return layout{}, fmt.Errorf("no cgroup hierarchy is mounted; mount cgroup2 at %s: %w", unifiedMount, errdefs.ErrFailedPrecondition)
	}
	slices.Sort(l.controllers)
	for _, mount := range l.mounts {
		l.all = append(l.all, mount)
	}
	slices.Sort(l.all)
	l.all = slices.Compact(l.all)
	return l, nil
}

// add takes note of one mount. A hierarchy may be mounted at several places;
// the one below /sys/fs/cgroup counts, where runc looks too.
func (l *layout) add(m *mountinfo.Info, at string) {
	usual := m.Mountpoint == unifiedMount || strings.HasPrefix(m.Mountpoint, unifiedMount+"/")
	set := func(controller string) bool {
		_, known := l.mounts[controller]
		if !known || usual {
			l.mounts[controller] = at
		}
		return !known
	}
	if m.FSType == "cgroup2" {
		set("")
		return
	}
	for _, option := range strings.Split(m.VFSOptions, ",") {
		switch {
		case strings.HasPrefix(option, "name="):
			set(option)
		case isController(option) && set(option):
			l.controllers = append(l.controllers, option)
		}
	}
}

// isController tells a v1 controller from the other options of its mount.
func isController(option string) bool {
	switch option {
	case "cpuset", "cpu", "cpuacct", "blkio", "memory", "devices", "freezer", "net_cls", "perf_event", "net_prio", "hugetlb", "pids", "rdma", "misc", "dmem":
		return true
	}
	return false
}

// runsSystemd tells whether systemd is process 1 of the machine at root.
func runsSystemd(root string) bool {
	if st, err := os.Lstat(filepath.Join(root, "run/systemd/system")); err != nil || !st.IsDir() {
		return false
	}
	comm, err := os.ReadFile(filepath.Join(root, "proc/1/comm"))
	return err == nil && strings.TrimSpace(string(comm)) == "systemd"
}
