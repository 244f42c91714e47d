package main

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
	"time"
)

const cgroupRoot = "/sys/fs/cgroup"

// cpuTree is the hierarchy that counts CPU time: the unified one, or cgroup
// v1's cpuacct.
func cpuTree() (dir string, unified bool, err error) {
	if _, err := os.Stat(cgroupRoot + "/cgroup.controllers"); err == nil {
		return cgroupRoot, true, nil
	}
	for _, name := range []string{"cpuacct", "cpu,cpuacct"} {
		if _, err := os.Stat(filepath.Join(cgroupRoot, name, "cpuacct.usage")); err == nil {
			return filepath.Join(cgroupRoot, name), false, nil
		}
	}
	return "", false, fmt.Errorf("no cgroup hierarchy at %s counts CPU time: mount cgroup v2, or cpuacct of v1", cgroupRoot)
}

// joinCgroup makes a cgroup and moves a process there. What the process
// executes is born there.
func joinCgroup(pid int, cgroup string) error {
	tree, _, err := cpuTree()
	if err != nil {
		return err
	}
	dir := filepath.Join(tree, cgroup)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}

// cgroupCPU is the CPU time of everything that ever was in a cgroup and below.
func cgroupCPU(cgroup string) (time.Duration, error) {
	tree, unified, err := cpuTree()
	if err != nil {
		return 0, err
	}
	file, unit := "cpuacct.usage", time.Nanosecond
	if unified {
		file, unit = "cpu.stat", time.Microsecond
	}
	text, err := os.ReadFile(filepath.Join(tree, cgroup, file))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // nothing was there yet
	}
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(strings.TrimPrefix(string(text), "usage_usec"))
	n, err := strconv.ParseInt(fields[0], 10, 64)
	return time.Duration(n) * unit, err
}

// removePodCgroup removes what is left of a pod's cgroup in every hierarchy,
// as a kubelet does.
func removePodCgroup(cgroup string) {
	dirs, _ := filepath.Glob(filepath.Join(cgroupRoot, "*", cgroup)) // the pattern is a good one
	for _, dir := range append(dirs, filepath.Join(cgroupRoot, cgroup)) {
		_ = os.Remove(dir) // the workspace's end removes what is still in use now
	}
}

// A process is one of a server.
type process struct {
	pid    int
	exe    string
	cgroup string // in the tree that counts CPU time, without the first "/"
}

// processes are the server's: those in its cgroup, and those elsewhere that
// name its directories. Pods' cgroups are below the server's, so workloads are
// among them.
func (s *server) processes() ([]process, error) {
	tree, _, err := cpuTree()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	controller := filepath.Base(tree)
	var all []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || pid == 1 {
			continue
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil {
			continue // gone, or a zombie: it has no memory
		}
		p := process{pid: pid, exe: exe, cgroup: cgroupOf(pid, controller)}
		if within(p.cgroup, s.cgroup) || s.named(pid) {
			all = append(all, p)
		}
	}
	return all, nil
}

// cgroupOf is a process's cgroup in v1's hierarchy of a controller, or in the
// unified one where there is no other.
func cgroupOf(pid int, controller string) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "" // it is gone
	}
	unified := ""
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(parts) != 3:
		case parts[1] == controller:
			return strings.TrimPrefix(parts[2], "/")
		case parts[1] == "":
			unified = strings.TrimPrefix(parts[2], "/")
		}
	}
	return unified
}

func within(cgroup, parent string) bool { return strings.HasPrefix(cgroup+"/", parent+"/") }

func (s *server) named(pid int) bool {
	for _, file := range []string{"cmdline", "environ"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		if err == nil && (bytes.Contains(text, []byte(s.dir+"/")) || bytes.Contains(text, []byte(s.state))) {
			return true
		}
	}
	return false
}

// workload tells whether a process is a user's, not the server's.
func (p process) workload() bool { return p.exe == workProgram }

// memory is the proportional set size of all that is no workload, in bytes.
func (s *server) memory() (int64, error) {
	all, err := s.processes()
	if err != nil {
		return 0, err
	}
	total := int64(0)
	for _, p := range all {
		if p.workload() {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.pid))
		if err != nil {
			continue // it is gone
		}
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
				kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
				if err != nil {
					return 0, err
				}
				total += kib << 10
			}
		}
	}
	return total, nil
}

// cpu is the CPU time of the server's daemon and all that it executed; with
// pods, of what ran in them too. A process that left the daemon's cgroup, as a
// supervisor may, counts with its new one's time where it has that to itself,
// else with what /proc/PID/stat says, which is in steps of 10 ms.
func (s *server) cpu(pods bool) (time.Duration, error) {
	counted := s.cgroup
	if !pods {
		counted = filepath.Join(s.cgroup, daemonCgroup)
	}
	total, err := cgroupCPU(counted)
	if err != nil {
		return 0, err
	}
	all, err := s.processes()
	if err != nil {
		return 0, err
	}
	added := map[string]bool{}
	for _, p := range all {
		if p.workload() || within(p.cgroup, counted) || added[p.cgroup] {
			continue
		}
		if !ownCgroup(p.cgroup, all) {
			total += processCPU(p.pid)
			continue
		}
		added[p.cgroup] = true
		more, err := cgroupCPU(p.cgroup)
		if err != nil {
			return 0, err
		}
		total += more
	}
	return total, nil
}

// ownCgroup tells whether a cgroup has no child and holds no process but a
// server's, of which none is a workload.
func ownCgroup(cgroup string, servers []process) bool {
	tree, _, err := cpuTree()
	if err != nil || cgroup == "" {
		return false
	}
	dir := filepath.Join(tree, cgroup)
	entries, err := os.ReadDir(dir)
	if err != nil || slices.ContainsFunc(entries, fs.DirEntry.IsDir) {
		return false
	}
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return false
	}
	for _, pid := range strings.Fields(string(text)) {
		ours := func(p process) bool { return strconv.Itoa(p.pid) == pid && !p.workload() }
		if !slices.ContainsFunc(servers, ours) {
			return false
		}
	}
	return true
}

const tick = 10 * time.Millisecond // USER_HZ is 100 on every architecture of Linux that Go runs on

// processCPU is the time of a process and of its children that it waited for;
// 0 where it is gone.
func processCPU(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	total := time.Duration(0)
	for _, f := range fields[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0
		}
		total += time.Duration(n) * tick
	}
	return total
}

// machineCPU is the time that the machine's processors were busy.
func machineCPU() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	total := time.Duration(0)
	for i, f := range strings.Fields(line)[1:] {
		if i == 3 || i == 4 || i > 6 { // idle, iowait; steal and guests
			continue
		}
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		total += time.Duration(n) * tick
	}
	return total, nil
}
