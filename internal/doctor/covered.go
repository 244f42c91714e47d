package doctor

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// wholeProc looks for what keeps the kernel from giving the containers of a pod
// with a user namespace a /proc of their own: it does not, where that would show
// what is hidden from berth.
func (e *exam) wholeProc() {
	if hidden := e.covered(); hidden != "" {
		e.warn("/proc", "containers of pods with hostUsers: false do not start; unmount it, or mount a whole proc elsewhere too", "%s is mounted over", hidden)
	}
}

// covered is the first mount that hides a part of /proc, "" for none or where
// the whole is mounted elsewhere as well.
func (e *exam) covered() string {
	f, err := os.Open(filepath.Join(e.Root, "proc/self/mountinfo"))
	if err != nil {
		return ""
	}
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return ""
	}
	hides := func(m *mountinfo.Info) bool {
		// This one is at an empty directory, which the kernel makes for it.
		return strings.HasPrefix(m.Mountpoint, "/proc/") && m.Mountpoint != "/proc/sys/fs/binfmt_misc"
	}
	whole := func(m *mountinfo.Info) bool {
		return m.FSType == "proc" && m.Root == "/" && m.Mountpoint != "/proc" && !hides(m)
	}
	i := slices.IndexFunc(mounts, hides)
	if i < 0 || slices.ContainsFunc(mounts, whole) {
		return ""
	}
	return mounts[i].Mountpoint
}
