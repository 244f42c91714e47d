package testkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/internal/host"
)

// What the environment says of the machine; see test/vm/README.md.
const (
	ownMachineEnv = "BERTH_TEST_OWN_MACHINE"
	driverEnv     = "BERTH_TEST_CGROUP_DRIVER"
	slowEnv       = "BERTH_TEST_SLOW"
)

// OwnMachine tells whether the machine is there for this test alone: then tests
// run in its own namespaces, where systemd knows processes by their numbers.
func OwnMachine() bool { return os.Getenv(ownMachineEnv) != "" }

// Systemd tells whether daemons under test have systemd make their cgroups. It
// needs a machine of its own.
func Systemd() bool { return os.Getenv(driverEnv) == host.SystemdDriver }

// Scaled is how long something may take on this machine that may take d on
// one that is not emulated.
func Scaled(d time.Duration) time.Duration {
	if factor, err := strconv.Atoi(os.Getenv(slowEnv)); err == nil && factor > 1 {
		return d * time.Duration(factor)
	}
	return d
}

// cgroupName is the parent of the cgroups of a daemon.
func cgroupName(random string) string {
	if Systemd() {
		return strings.ReplaceAll(cgroupPrefix, "-", "") + random + ".slice"
	}
	return cgroupPrefix + random
}

// podCgroup is the cgroup parent that a client names for a pod, as a kubelet
// does: by its whole path.
func (d *Daemon) podCgroup(pod string) string {
	if Systemd() {
		slice := strings.TrimSuffix(d.CgroupParent, ".slice") + "-" + strings.ReplaceAll(pod, "-", "_") + ".slice"
		return filepath.Join("/", d.CgroupParent, slice)
	}
	return filepath.Join("/", d.CgroupParent, pod)
}

// Cgroup is the container's cgroup as a path below the root of a hierarchy.
func (c *Container) Cgroup() string {
	parent := c.Pod.Config.Linux.CgroupParent
	if Systemd() {
		return filepath.Join(parent, "cri-containerd-"+c.ID+".scope")
	}
	return filepath.Join(parent, c.ID)
}

// CgroupV2 tells whether the machine has cgroup v2 alone.
func CgroupV2() bool {
	_, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers"))
	return err == nil
}

// CgroupFile is where a file of a cgroup is, which is in the hierarchy of a
// controller on v1.
func CgroupFile(controller, cgroup, file string) string {
	if CgroupV2() {
		controller = ""
	}
	return filepath.Join(cgroupRoot, controller, cgroup, file)
}

// MakeCgroup makes a cgroup as a kubelet does that has it before the pod, on v1
// in one hierarchy. It is removed when the test ends.
func MakeCgroup(t testing.TB, controller, cgroup string) {
	t.Helper()
	dir, slice := CgroupFile(controller, cgroup, ""), filepath.Base(cgroup)
	begin, end := func() error { return os.MkdirAll(dir, 0o755) }, func() error { return removeCgroups(cgroup) }
	if Systemd() {
		begin = func() error { return exec.Command("systemctl", "start", slice).Run() }
		end = func() error { return exec.Command("systemctl", "stop", slice).Run() }
	}
	if err := begin(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}
