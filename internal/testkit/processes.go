package testkit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// cgroupPrefix begins the name of every daemon's cgroup parent, after it the
// directory's random part.
const cgroupPrefix = "berth-test-"

// basePrefix begins every daemon's base directory.
const basePrefix = "/tmp/berth-"

const cgroupRoot = "/sys/fs/cgroup"

// processes are those that a daemon of this process started and that are not
// the daemon, its containerd, or a tool that the test itself runs.
func (d *Daemon) processes() []string {
	var lines []string
	for _, p := range d.ownProcesses() {
		lines = append(lines, p.text)
	}
	slices.Sort(lines)
	return lines
}

type proc struct {
	pid, ppid int
	text      string
}

func (d *Daemon) ownProcesses() []proc {
	daemonsMu.Lock()
	var others []*Daemon
	for o := range daemons {
		if o != d {
			others = append(others, o)
		}
	}
	daemonsMu.Unlock()
	var found []proc
	for _, pid := range pids() {
		p, evidence, ok := readProc(pid)
		if !ok || pid == os.Getpid() || p.ppid == os.Getpid() || pid == 1 || p.ppid == 0 {
			continue
		}
		if OwnMachine() && !d.named(evidence) {
			continue // the machine's
		}
		if !d.named(evidence) && slices.ContainsFunc(others, func(o *Daemon) bool { return o.named(evidence) }) {
			continue
		}
		found = append(found, p)
	}
	return found
}

func (d *Daemon) named(evidence string) bool {
	return strings.Contains(evidence, d.Base) || strings.Contains(evidence, d.State) || strings.Contains(evidence, d.CgroupParent)
}

func pids() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		panic(err) // proc is mounted or nothing works
	}
	var all []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// readProc describes a process; evidence is all that may name its daemon. A
// process that is gone is not ok.
func readProc(pid int) (p proc, evidence string, ok bool) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	read := func(name string) string {
		text, err := os.ReadFile(dir + name)
		if err != nil {
			return ""
		}
		return strings.ReplaceAll(string(text), "\x00", " ")
	}
	stat := read("stat")
	end := strings.LastIndex(stat, ")")
	if end < 0 {
		return proc{}, "", false
	}
	comm := stat[strings.Index(stat, "(")+1 : end]
	fields := strings.Fields(stat[end+1:])
	p.pid = pid
	p.ppid, _ = strconv.Atoi(fields[1]) // a number, says proc(5)
	cmdline := strings.TrimSpace(read("cmdline"))
	p.text = comm + ": " + cmdline
	if fields[0] == "Z" {
		p.text = comm + " (zombie)"
		if p.ppid == 1 {
			return proc{}, "", false // init is about to reap it
		}
	}
	evidence = cmdline + "\n" + read("environ") + "\n" + read("cgroup")
	if p.ppid > 1 && fields[0] == "Z" {
		evidence += read(fmt.Sprintf("../%d/cmdline", p.ppid))
	}
	return p, evidence, true
}

// killAll ends what the daemon left, by ID.
func (d *Daemon) killAll() error {
	for range 50 {
		left := d.ownProcesses()
		if len(left) == 0 {
			return nil
		}
		for _, p := range left {
			if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill %s: %w", p.text, err)
			}
			waitGone(p.pid)
		}
	}
	return errors.New("processes do not end")
}

func waitGone(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000) // the caller looks again
	_ = unix.Close(fd)
}

// cgroups are the directories below parent in every hierarchy.
func cgroups(parent string) []string {
	var lines []string
	for _, top := range cgroupTops(parent) {
		_ = filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error { // what goes meanwhile is gone
			if err == nil && e.IsDir() {
				lines = append(lines, path)
			}
			return nil
		})
	}
	slices.Sort(lines)
	return lines
}

func cgroupTops(parent string) []string {
	if parent == "" {
		return nil // a daemon of which nothing was made yet
	}
	tops := []string{filepath.Join(cgroupRoot, parent)}
	inEach, _ := filepath.Glob(filepath.Join(cgroupRoot, "*", parent)) // the pattern is a good one
	return append(tops, inEach...)
}

// removeCgroups kills what is in the cgroups below parent and removes them.
func removeCgroups(parent string) error {
	dirs := cgroups(parent)
	slices.SortFunc(dirs, func(a, b string) int { return len(b) - len(a) })
	for _, dir := range dirs {
		text, _ := os.ReadFile(dir + "/cgroup.procs") // gone is fine
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL) // rmdir tells whether it went
				waitGone(pid)
			}
		}
	}
	var errs []error
	for _, dir := range dirs {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("cgroup %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// alive is a file in each daemon's base directory that its test process keeps
// locked.
const alive = "alive"

// claim marks a base directory as in use until this process ends. The mark
// appears locked, so that a sweep never meets one that is not.
func claim(base string) (*os.File, error) {
	f, err := os.CreateTemp(base, "claim-")
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(base, alive))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// sweep removes what runs that were killed left: base directories that nobody
// holds, and cgroups whose base directory is gone.
func sweep() error {
	bases, err := filepath.Glob(basePrefix + "*/" + alive)
	if err != nil {
		return err
	}
	var errs []error
	for _, mark := range bases {
		f, err := os.Open(mark)
		if err != nil {
			continue // another sweep took it
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			errs = append(errs, os.RemoveAll(filepath.Dir(mark)))
		}
		errs = append(errs, f.Close())
	}
	inEach, err := filepath.Glob(filepath.Join(cgroupRoot, "*", cgroupPrefix+"*"))
	if err != nil {
		return err
	}
	inOne, err := filepath.Glob(filepath.Join(cgroupRoot, cgroupPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range append(inEach, inOne...) {
		name := filepath.Base(dir)
		if _, err := os.Stat(basePrefix + strings.TrimPrefix(name, cgroupPrefix)); errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, removeCgroups(name))
		}
	}
	return errors.Join(errs...)
}
