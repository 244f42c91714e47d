package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"golang.org/x/sys/unix"
)

// apartCgroup is where processes that outlive the daemon are without systemd.
var apartCgroup = "/berth-supervisor"

// SetApart moves a process that is to outlive the daemon out of the daemon's
// cgroup: with systemd into a scope of the name, whose stopping is nobody's
// but systemd's; without, into a cgroup for such processes, unless the daemon is
// in the root cgroup, which nobody ends as a whole.
func (c *Cgroups) SetApart(ctx context.Context, name string, pid int) error {
	if c.units != nil {
		ctx, cancel := context.WithTimeout(ctx, unitTimeout)
		defer cancel()
		return c.units.StartScope(ctx, name+".scope", pid)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	if inRoot(string(own)) {
		return nil
	}
	for _, mount := range c.layout.all {
		err := c.moveApart(mount, pid)
		if errors.Is(err, fs.ErrNotExist) { // another daemon has just removed it
			err = c.moveApart(mount, pid)
		}
		if err != nil {
			return fmt.Errorf("move process %d to cgroup %s: %w", pid, apartCgroup, err)
		}
	}
	return nil
}

func (c *Cgroups) moveApart(mount string, pid int) error {
	dir := filepath.Join(mount, apartCgroup)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if c.layout.version == 1 && mount == c.layout.mounts["cpuset"] {
		if err := inheritCpuset(mount, dir); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}

// ClearApart removes the cgroup that SetApart made where no process is in it
// any more. Whoever starts or stops a daemon last takes it away; one that
// processes outlive stays.
func (c *Cgroups) ClearApart() error {
	if c.units != nil {
		return nil // a scope goes with its last process
	}
	var errs []error
	for _, mount := range c.layout.all {
		err := unix.Rmdir(filepath.Join(mount, apartCgroup))
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", apartCgroup, err))
		}
	}
	return errors.Join(errs...)
}

// inRoot tells whether /proc/PID/cgroup is of a process in the root cgroup of
// every hierarchy.
func inRoot(file string) bool {
	for line := range strings.Lines(file) {
		// ID:CONTROLLERS:PATH
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 && parts[2] != "/" {
			return false
		}
	}
	return true
}

func (s *systemdUnits) StartScope(ctx context.Context, name string, pid int) error {
	properties := []systemd.Property{
		systemd.PropDescription("berth: supervisor of containers"),
		systemd.PropPids(uint32(pid)),
		property("DefaultDependencies", false), // it ends with its last container
		property("KillMode", "process"),
	}
	done := make(chan string, 1)
	err := s.call(ctx, func(conn *systemd.Conn) error {
		_, err := conn.StartTransientUnitContext(ctx, name, "replace", properties, done)
		return err
	})
	if err != nil {
		return fmt.Errorf("systemd: start %s: %w", name, err)
	}
	return s.await(ctx, "start", name, done)
}
