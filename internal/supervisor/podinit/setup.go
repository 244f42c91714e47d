// Package podinit is PID 1 of a PID namespace that a pod's containers share.
//
// What stays is a program of some hundred bytes that this package holds
// (reaper_*.s): it takes note of orphans' ends until SIGTERM, and with PID 1
// the kernel ends all others. It has an empty read-only root but for itself,
// its own copy, so that a container that can reach /proc/1/exe reaches nothing
// of the host; no capability, no descriptor, no memory to speak of.
//
// Setup gets it there. It runs in containerd-shim-berth-v1, as root in a mount
// namespace of its own, gives everything up, and executes the program.
//
// Descriptor 3 is a socket to whoever starts it. Setup writes "ready" when all
// is prepared, and waits for one byte; if the socket is closed without it, it
// ends. So none is left behind by a daemon that was killed before it could pin
// the namespace. The socket's end without a word then says that the program
// runs. Anything else that is written is an error's text.
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
	// Name is the program's argv[0].
	Name = "pod-init"
	// Ready is what Setup writes when it waits for the byte.
	Ready = "ready"
	// ID is its user and group.
	ID = 65535

	socket = 3
	// stage is a directory that any Linux system has. In the mount namespace
	// of this process the new root is mounted over it.
	stage = "/sys"
	self  = "/" + Name
)

// Setup becomes the program. It returns only with an error, which it has
// written to the socket too.
func Setup(args []string) error {
	runtime.LockOSThread() // capabilities and the signal mask are a thread's
	err := setup(args)
	unix.Write(socket, []byte(err.Error()))
	return err
}

func setup(args []string) error {
	if os.Getpid() != 1 {
		return errors.New("pod-init is started by berth, as PID 1 of a new PID and mount namespace")
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
		{"block signals", blockSignals},
		{"wait for berth", greet},
		{"close descriptors", closeAll},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("pod-init: %s: %w", step.name, err)
		}
	}
	err := unix.Exec(self, append([]string{Name}, args...), nil)
	return fmt.Errorf("pod-init: execute %s: %w", self, err)
}

// makeRoot mounts a tmpfs with the program in it.
func makeRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	if err := unix.Mount("tmpfs", stage, "tmpfs", flags, "size=4k,nr_inodes=3,mode=0555"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	content, err := Program()
	if err != nil {
		return err
	}
	if err := os.WriteFile(stage+self, content, 0o100); err != nil {
		return err
	}
	// Not readable, so that the kernel lets nobody look into the process who
	// has not CAP_SYS_PTRACE, processes of the same user neither.
	if err := os.Chmod(stage+self, 0o111); err != nil {
		return err
	}
	if err := unix.Mount("", stage, "", flags|unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
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

// blockSignals blocks those that the program waits for.
func blockSignals() error {
	var set unix.Sigset_t
	for _, s := range []unix.Signal{unix.SIGCHLD, unix.SIGTERM, unix.SIGINT} {
		set.Val[0] |= 1 << (s - 1)
	}
	return unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil)
}

// greet says that all is prepared, and returns when berth has done its part.
func greet() error {
	if _, err := unix.Write(socket, []byte(Ready)); err != nil {
		return err
	}
	var b [1]byte
	for {
		n, err := unix.Read(socket, b[:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return errors.New("it is gone")
		default:
			return nil
		}
	}
}

// closeAll has the execution close every descriptor.
func closeAll() error { return unix.CloseRange(0, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) }
