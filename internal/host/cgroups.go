package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The drivers: who makes cgroups, berth itself or systemd.
const (
	CgroupfsDriver = "cgroupfs"
	SystemdDriver  = "systemd"
	autoDriver     = "auto"
)

// scopePrefix starts the names of containers' systemd units, as kubelets and
// cAdvisor know them from containerd.
const scopePrefix = "cri-containerd"

// unitTimeout bounds a call to systemd.
const unitTimeout = 20 * time.Second

// Cgroups changes and reads the machine's cgroups in whatever layout it has:
// v1, v1 with an additional v2 tree (hybrid), v2. Paths of cgroups are
// absolute and start at the mounts of the hierarchies ("/kubepods/pod1"). A
// parent is such a path or, with the systemd driver, a slice by its name or
// by its path.
//
// It is safe for concurrent use.
type Cgroups struct {
	driver string
	layout layout
	units  units // nil with the cgroupfs driver
}

// NewCgroups finds out the machine's layout. The driver is "cgroupfs",
// "systemd", or "auto" (also ""), which is systemd where it runs the machine
// and a cgroup hierarchy, else cgroupfs.
func NewCgroups(driver string) (*Cgroups, error) { return NewCgroupsAt("/", driver) }

// NewCgroupsAt is NewCgroups for the machine whose file system starts at root,
// such as a recorded tree: proc/self/mountinfo below it says what is mounted.
func NewCgroupsAt(root, driver string) (*Cgroups, error) {
	l, err := readLayout(root)
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	suits := l.systemd != "" && runsSystemd(root)
	switch driver {
	case autoDriver, "":
		driver = CgroupfsDriver
		if suits {
			driver = SystemdDriver
		}
	case CgroupfsDriver:
	case SystemdDriver:
		if !suits {
			return nil, fmt.Errorf("cgroup driver %q: this machine is not run by systemd; use %q or %q: %w", driver, CgroupfsDriver, autoDriver, errdefs.ErrFailedPrecondition)
		}
	default:
		return nil, fmt.Errorf("cgroup driver %q: must be %q, %q or %q: %w", driver, autoDriver, CgroupfsDriver, SystemdDriver, errdefs.ErrInvalidArgument)
	}
	c := &Cgroups{driver: driver, layout: l}
	if driver == SystemdDriver {
		c.units = &systemdUnits{v2: l.version == 2}
	}
	return c, nil
}

// Driver returns which driver is used, never "auto".
func (c *Cgroups) Driver() string { return c.driver }

// Version returns 2 where all controllers are in the v2 hierarchy, else 1.
func (c *Cgroups) Version() int { return c.layout.version }

// Controllers returns the controllers that cgroups can have here, sorted.
func (c *Cgroups) Controllers() []string { return slices.Clone(c.layout.controllers) }

// Close ends the connection to systemd, if there is one.
func (c *Cgroups) Close() error {
	if c.units == nil {
		return nil
	}
	return c.units.Close()
}

// Dir returns the directory of the cgroup in the hierarchy that has the
// controller, or "" where none has it. With v1, "name=systemd" is the named
// hierarchy and "" the additional v2 tree; with v2 every controller is in the
// one hierarchy.
func (c *Cgroups) Dir(controller, path string) string {
	mount, ok := c.layout.mounts[controller]
	if !ok {
		if c.layout.version == 1 || controller != "" && !slices.Contains(c.layout.controllers, controller) {
			return ""
		}
		mount = c.layout.mounts[""]
	}
	return mount + strings.TrimSuffix(filepath.Join("/", path), "/")
}

// dirs returns the directories of a cgroup in all hierarchies.
func (c *Cgroups) dirs(path string) []string {
	dirs := make([]string, len(c.layout.all))
	for i, mount := range c.layout.all {
		dirs[i] = filepath.Join(mount, filepath.Join("/", path))
	}
	return dirs
}

// Exists tells whether the cgroup is there in any hierarchy.
func (c *Cgroups) Exists(parent string) bool {
	path, err := c.expand(parent)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(c.dirs(path), func(dir string) bool {
		st, err := os.Stat(dir)
		return err == nil && st.IsDir()
	})
}

// Ensure makes the cgroup, and those above it, in every hierarchy, ready to
// hold cgroups of containers: with a cpuset and, on v2, with all controllers
// turned on for what is below, so that it cannot hold processes itself. ErrInvalidArgument: parent's form does not suit
// the driver.
func (c *Cgroups) Ensure(parent string) error {
	path, err := c.expand(parent)
	if err != nil {
		return err
	}
	if path == "/" {
		return nil
	}
	if c.units != nil {
		ctx, cancel := context.WithTimeout(context.Background(), unitTimeout)
		defer cancel()
		if err := c.units.StartSlice(ctx, filepath.Base(path)); err != nil {
			return fmt.Errorf("make cgroup %s: %w", path, err)
		}
		if c.layout.version == 2 {
			return nil // which controllers are on there is systemd's to say
		}
	}
	for _, mount := range c.layout.all {
		if err := c.ensureIn(mount, path); err != nil {
			return fmt.Errorf("make cgroup %s: %w", path, err)
		}
	}
	return nil
}

func (c *Cgroups) ensureIn(mount, path string) error {
	dir := mount
	if c.layout.version == 2 {
		if err := delegate(dir); err != nil {
			return err
		}
	}
	for _, part := range strings.Split(strings.Trim(path, "/"), "/") {
		above := dir
		dir = filepath.Join(dir, part)
		err := os.Mkdir(dir, 0o755)
		made := err == nil
		if errors.Is(err, fs.ErrExist) {
			err = nil
		}
		if err != nil {
			return err
		}
		switch {
		case c.layout.version == 2:
			err = delegate(dir)
		case mount == c.layout.mounts["cpuset"]:
			err = inheritCpuset(above, dir)
		case made && mount == c.layout.mounts["memory"]:
			err = useHierarchy(dir)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Remove removes the cgroup in every hierarchy, and the empty cgroups below
// it. ErrFailedPrecondition: processes are in it.
func (c *Cgroups) Remove(path string) error {
	path, err := c.expand(path)
	if err != nil {
		return err
	}
	if path == "/" {
		return fmt.Errorf("remove cgroup %s: it is the root: %w", path, errdefs.ErrInvalidArgument)
	}
	if c.units != nil && isUnit(path) && c.Exists(path) {
		// Stopping a unit kills what is in it, so look first.
		if pids, err := c.Procs(path); err == nil && len(pids) > 0 {
			return fmt.Errorf("remove cgroup %s: %w", path, busy(pids))
		}
		ctx, cancel := context.WithTimeout(context.Background(), unitTimeout)
		defer cancel()
		if err := c.units.Stop(ctx, filepath.Base(path)); err != nil {
			return fmt.Errorf("remove cgroup %s: %w", path, err)
		}
	}
	var failed []error
	until := time.Now().Add(releaseTime)
	for _, dir := range c.dirs(path) {
		if err := removeCgroup(dir, until); err != nil {
			failed = append(failed, err)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("remove cgroup %s: %w", path, errors.Join(failed...))
	}
	return nil
}

// Procs returns the processes in the cgroup and below it, in any hierarchy,
// sorted. A cgroup that is not there has none.
func (c *Cgroups) Procs(path string) ([]int, error) {
	path, err := c.expand(path)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, dir := range c.dirs(path) {
		if pids, err = appendProcs(pids, dir); err != nil {
			return nil, fmt.Errorf("processes of cgroup %s: %w", path, err)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// ProcsIn is Procs for the hierarchy of one controller, as named for Dir.
func (c *Cgroups) ProcsIn(controller, path string) ([]int, error) {
	dir := c.Dir(controller, path)
	if dir == "" {
		return nil, fmt.Errorf("processes of cgroup %s: no hierarchy has the controller %q: %w", path, controller, errdefs.ErrNotFound)
	}
	pids, err := appendProcs(nil, dir)
	if err != nil {
		return nil, fmt.Errorf("processes of cgroup %s: %w", path, err)
	}
	return pids, nil
}

// OOMKills returns how many processes of the cgroup the kernel has killed for
// want of memory; on v2 those of the cgroups below it count too. ErrNotFound:
// there is no such cgroup, or no memory controller.
func (c *Cgroups) OOMKills(path string) (uint64, error) {
	path, err := c.expand(path)
	if err != nil {
		return 0, err
	}
	dir := c.Dir("memory", path)
	if dir == "" {
		return 0, fmt.Errorf("OOM kills of cgroup %s: the memory controller is not there: %w", path, errdefs.ErrNotFound)
	}
	file := "memory.oom_control"
	if c.layout.version == 2 {
		file = "memory.events"
	}
	data, err := os.ReadFile(filepath.Join(dir, file))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return 0, fmt.Errorf("OOM kills of cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return 0, fmt.Errorf("OOM kills of cgroup %s: %w", path, err)
	}
	kills, err := oomKills(string(data))
	if err != nil {
		return 0, fmt.Errorf("OOM kills of cgroup %s: %s: %w", path, file, err)
	}
	return kills, nil
}
