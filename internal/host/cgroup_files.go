package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// releaseTime bounds how long a removal waits for the kernel, which lets go of
// a cgroup shortly after its last process was reaped.
const releaseTime = 100 * time.Millisecond

// The waits between two looks at a cgroup start at the first and double up to
// the last.
const (
	firstWait = 50 * time.Microsecond
	lastWait  = 2 * time.Millisecond
)

// inheritCpuset fills a cpuset that is empty, as a new one is: no process can
// join it.
func inheritCpuset(parent, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(have)) != "" {
			continue
		}
		above, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, file), strings.TrimSpace(string(above))); err != nil {
			return err
		}
	}
	return nil
}

// useHierarchy makes a new v1 memory cgroup count what is below it. Newer
// kernels always do and have the file for show, or not at all.
func useHierarchy(dir string) error {
	file := filepath.Join(dir, "memory.use_hierarchy")
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(data)) == "1" {
		return nil
	}
	if err != nil {
		return err
	}
	return writeFile(file, "1")
}

// delegate turns on, for the cgroups below dir, all controllers that dir has.
// A single one that the kernel refuses (cpu, with real-time processes about)
// is left out; a container that sets its limits will say so.
func delegate(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "cgroup.subtree_control")
	on, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	enabled := strings.Fields(string(on))
	var missing []string
	for _, controller := range strings.Fields(string(have)) {
		if !slices.Contains(enabled, controller) {
			missing = append(missing, "+"+controller)
		}
	}
	if len(missing) == 0 || writeFile(file, strings.Join(missing, " ")) == nil {
		return nil
	}
	var failed []error
	for _, one := range missing {
		if err := writeFile(file, one); err != nil {
			failed = append(failed, fmt.Errorf("turn on %s: %w", one, err))
		}
	}
	switch {
	case len(failed) == 0, len(failed) < len(missing) || len(enabled) > 0:
		return nil
	case errors.Is(failed[0], unix.EBUSY):
		return fmt.Errorf("%w: processes are in %s itself, which must only hold cgroups; move them away or choose another parent: %w", failed[0], dir, errdefs.ErrFailedPrecondition)
	}
	return errors.Join(failed...)
}

// writeFile writes to a file that is there.
func writeFile(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// removeCgroup removes one directory and the cgroups below it.
func removeCgroup(dir string, until time.Time) error {
	looked := false
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		gone, err := rmdir(dir)
		if gone || err != nil {
			return err
		}
		below, err := subdirectories(dir)
		if err != nil {
			return err
		}
		for _, name := range below {
			if err := removeCgroup(filepath.Join(dir, name), until); err != nil {
				return err
			}
		}
		if len(below) > 0 {
			if gone, err := rmdir(dir); gone || err != nil {
				return err
			}
		}
		pids, err := appendProcs(nil, dir)
		if err != nil {
			return err
		}
		if len(pids) > 0 && looked {
			return fmt.Errorf("rmdir %s: %w", dir, busy(pids))
		}
		looked = len(pids) > 0
		if time.Now().After(until) {
			return fmt.Errorf("rmdir %s: the kernel keeps it, though no process is in it: %w: %w", dir, unix.EBUSY, errdefs.ErrFailedPrecondition)
		}
		time.Sleep(wait)
	}
}

// rmdir tells whether the directory is gone now; false: the kernel holds it.
func rmdir(dir string) (gone bool, err error) {
	switch err := unix.Rmdir(dir); {
	case err == nil, errors.Is(err, unix.ENOENT):
		return true, nil
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENOTEMPTY):
		return false, nil
	default:
		return false, fmt.Errorf("rmdir %s: %w", dir, err)
	}
}

func busy(pids []int) error {
	shown := pids[:min(len(pids), 10)]
	return fmt.Errorf("%d processes are in it, among them %v: %w", len(pids), shown, errdefs.ErrFailedPrecondition)
}

// subdirectories are those of a cgroup; none where it is gone.
func subdirectories(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// appendProcs appends the processes in dir and below it.
func appendProcs(pids []int, dir string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
		return pids, nil // gone
	case errors.Is(err, unix.EOPNOTSUPP):
		// A threaded cgroup: its processes are listed in one above it.
	case err != nil:
		return nil, err
	}
	for _, line := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(line)
		if err != nil {
			return nil, fmt.Errorf("%s/cgroup.procs: %q: %w", dir, line, err)
		}
		if pid > 0 { // 0: of a PID namespace that is not ours
			pids = append(pids, pid)
		}
	}
	below, err := subdirectories(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range below {
		if pids, err = appendProcs(pids, filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	return pids, nil
}

// oomKills reads the line "oom_kill N" of memory.oom_control or memory.events.
func oomKills(text string) (uint64, error) {
	for line := range strings.Lines(text) {
		if count, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strconv.ParseUint(strings.TrimSpace(count), 10, 64)
		}
	}
	return 0, nil // a kernel older than 4.13 does not count
}

// KillAll kills every process in the cgroup and below it, those too that start
// meanwhile or are frozen, and waits until none is left or the context ends.
// A cgroup that is not there has none.
func (c *Cgroups) KillAll(ctx context.Context, path string) error {
	path, err := c.expand(path)
	if err != nil {
		return err
	}
	if path == "/" {
		return fmt.Errorf("kill all processes of cgroup %s: it is the root: %w", path, errdefs.ErrInvalidArgument)
	}
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		pids, err := c.kill(path)
		if err != nil {
			return fmt.Errorf("kill all processes of cgroup %s: %w", path, err)
		}
		if len(pids) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kill all processes of cgroup %s: still running, perhaps waiting for a device: %v: %w", path, pids[:min(len(pids), 10)], context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// kill sends SIGKILL once to all processes and returns which there were.
func (c *Cgroups) kill(path string) ([]int, error) {
	pids, err := c.Procs(path)
	if err != nil || len(pids) == 0 {
		return nil, err
	}
	if c.layout.version == 2 {
		err := writeFile(filepath.Join(c.Dir("", path), "cgroup.kill"), "1")
		switch {
		case err == nil, errors.Is(err, unix.ENODEV):
			return pids, nil
		case !errors.Is(err, fs.ErrNotExist): // Linux before 5.14
			return nil, err
		}
	}
	if err := c.signal(path, pids, unix.SIGKILL); err != nil {
		return nil, err
	}
	return pids, c.thaw(path)
}

// signal sends to those of the processes that are in the cgroup still.
func (c *Cgroups) signal(path string, pids []int, sig unix.Signal) error {
	fds := make(map[int]int, len(pids))
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			fds[pid] = fd
		}
	}
	// A number that is listed now had its pidfd opened before: the pidfd is
	// of that process or of one that has ended.
	now, err := c.Procs(path)
	if err != nil {
		return err
	}
	for _, pid := range now {
		if fd, ok := fds[pid]; ok {
			if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("process %d: %w", pid, err)
			}
		}
	}
	return nil
}

// thaw lets frozen v1 cgroups go on, so that a signal takes effect.
func (c *Cgroups) thaw(path string) error {
	dir := c.Dir("freezer", path)
	if c.layout.version == 2 || dir == "" {
		return nil
	}
	file := filepath.Join(dir, "freezer.state")
	state, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err == nil && strings.TrimSpace(string(state)) != "THAWED" {
		err = writeFile(file, "THAWED")
	}
	if err != nil {
		return err
	}
	below, err := subdirectories(dir)
	for _, name := range below {
		err = errors.Join(err, c.thaw(filepath.Join(path, name)))
	}
	return err
}
