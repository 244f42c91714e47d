package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	inside bool // the server's cgroup
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
		p := process{pid: pid, exe: exe, inside: s.inCgroup(pid, controller)}
		if p.inside || s.named(pid) {
			all = append(all, p)
		}
	}
	return all, nil
}

func (s *server) inCgroup(pid int, controller string) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && (parts[1] == "" || parts[1] == controller) && strings.HasPrefix(parts[2]+"/", "/"+s.cgroup+"/") {
			return true
		}
	}
	return false
}

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
// pods, of what ran in them too. Processes outside the server's cgroup count
// with what /proc/PID/stat says, which is in steps of 10 ms.
func (s *server) cpu(pods bool) (time.Duration, error) {
	cgroup := s.cgroup
	if !pods {
		cgroup = filepath.Join(s.cgroup, daemonCgroup)
	}
	total, err := cgroupCPU(cgroup)
	if err != nil {
		return 0, err
	}
	all, err := s.processes()
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		if !p.inside && !p.workload() {
			total += processCPU(p.pid)
		}
	}
	return total, nil
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
