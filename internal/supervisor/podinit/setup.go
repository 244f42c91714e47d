// Package podinit is PID 1 of a PID namespace that a pod's containers share.
//
// It has two stages, so that what stays is unprivileged from its first
// instruction. Setup runs as root in a mount namespace of its own: it makes an
// empty read-only root with nothing in it but this program, gives up every
// capability and identity, and executes the program again. Reap is what the
// second execution does: it takes note of orphans' ends until SIGTERM.
//
// The program is mounted read-only, so a container that can reach
// /proc/1/exe, which takes CAP_SYS_PTRACE, cannot write the host's copy by it.
//
// Descriptor 3 is a socket to whoever starts it: the second stage writes
// "ready", anything else is an error's text; then it waits for one byte, and
// ends if the socket is closed without it. So none is left behind by a daemon
// that was killed before it could pin the namespace.
package podinit

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// Name is the second stage's argv[0].
	Name = "pod-init"
	// Ready is what it writes when it waits for the byte.
	Ready = "ready"
	// ID is its user and group.
	ID = 65535

	socket = 3
	// stage is a directory that any Linux system has. In the mount namespace
	// of this process the new root is mounted over it.
	stage = "/sys"
	self  = "/" + Name
)

// Setup is the first stage. It returns only with an error, which it has
// written to the socket too.
func Setup(args []string) error {
	runtime.LockOSThread() // capabilities are a thread's
	err := setup(args)
	unix.Write(socket, []byte(err.Error()))
	return err
}

func setup(args []string) error {
	if os.Getpid() != 1 {
		return errors.New("pod-init is started by berth, as PID 1 of a new PID and mount namespace")
	}
	// Whatever else was inherited ends with this stage.
	if err := unix.CloseRange(socket+1, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close descriptors: %w", err)
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"make an empty root", makeRoot},
		{"enter the empty root", enterRoot},
		{"drop capabilities", dropBounding},
		{"change identity", changeID},
		{"drop capabilities", dropRest},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("pod-init: %s: %w", step.name, err)
		}
	}
	err := unix.Exec(self, append([]string{Name}, args...), []string{"GOMAXPROCS=1"})
	return fmt.Errorf("pod-init: execute %s as user %d; it must be executable by all: %w", self, ID, err)
}

// makeRoot mounts a tmpfs and, in it, this program read-only.
func makeRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=4k,nr_inodes=3,mode=0555"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	fd, err := unix.Open(stage+self, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o555)
	if err != nil {
		return err
	}
	if err := unix.Close(fd); err != nil {
		return err
	}
	if err := unix.Mount("/proc/self/exe", stage+self, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount this program: %w", err)
	}
	const flags = unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV
	if err := unix.Mount("", stage+self, "", flags, ""); err != nil {
		return fmt.Errorf("make this program read-only: %w", err)
	}
	if err := unix.Mount("", stage, "", flags, ""); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	return nil
}

// enterRoot makes the tmpfs the root and takes the host's away.
func enterRoot() error {
	if err := unix.Chdir(stage); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return unix.Chdir("/")
}

// dropBounding takes every capability out of the bounding set.
func dropBounding() error {
	for capability := uintptr(0); ; capability++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && capability > 0 {
			return nil // past the last one that this kernel has
		}
		if err != nil {
			return fmt.Errorf("capability %s: %w", strconv.Itoa(int(capability)), err)
		}
	}
}

func changeID() error {
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	if err := syscall.Setresgid(ID, ID, ID); err != nil {
		return fmt.Errorf("setresgid: %w", err)
	}
	if err := syscall.Setresuid(ID, ID, ID); err != nil {
		return fmt.Errorf("setresuid: %w", err)
	}
	return nil
}

// dropRest empties the sets that are left, and sees to it that no execution
// gives anything back.
func dropRest() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}
