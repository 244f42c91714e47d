package host

import (
	"errors"
	"fmt"
	"os/exec"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// InNetNS calls fn on a thread in the network namespace at path. fn must
// change nothing else of its thread, and what it starts in other goroutines
// runs outside. A path that is no network namespace is ErrNotFound.
func InNetNS(path string, fn func() error) error {
	target, err := openNamespace(path)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return onThread(func() (bool, error) {
		own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return true, fmt.Errorf("open the thread's network namespace: %w", err)
		}
		defer unix.Close(own)
		if err := unix.Setns(target, unix.CLONE_NEWNET); err != nil {
			return true, joinError(path, err)
		}
		err = fn()
		return unix.Setns(own, unix.CLONE_NEWNET) == nil, err
	})
}

// StartIn starts cmd in the namespaces at the paths, as nsenter would, but
// without a program in between. Joining a user namespace is not possible. cmd
// must not set Pdeathsig: the thread that starts it ends at once.
func StartIn(nsPaths []string, cmd *exec.Cmd) error {
	if cmd.SysProcAttr != nil && cmd.SysProcAttr.Pdeathsig != 0 {
		return fmt.Errorf("start %s: Pdeathsig would end it with the thread that starts it: %w", cmd.Path, errdefs.ErrInvalidArgument)
	}
	if len(nsPaths) == 0 {
		return cmd.Start()
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, path := range nsPaths {
		fd, err := openNamespace(path)
		if err != nil {
			return fmt.Errorf("start %s: %w", cmd.Path, err)
		}
		fds = append(fds, fd)
	}
	return onOwnThread(func() error {
		for i, fd := range fds {
			if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err == nil && kind == unix.CLONE_NEWNS {
				// The root directory must no longer be shared with other threads.
				if err := unix.Unshare(unix.CLONE_FS); err != nil {
					return fmt.Errorf("start %s: %w", cmd.Path, err)
				}
			}
			if err := unix.Setns(fd, 0); err != nil {
				return fmt.Errorf("start %s: %w", cmd.Path, joinError(nsPaths[i], err))
			}
		}
		return cmd.Start()
	})
}

func openNamespace(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) {
		return -1, fmt.Errorf("namespace %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return -1, fmt.Errorf("open namespace %s: %w", path, err)
	}
	return fd, nil
}

func joinError(path string, err error) error {
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("join namespace %s: no namespace of the right kind is mounted there: %w", path, errdefs.ErrNotFound)
	}
	return fmt.Errorf("join namespace %s: %w", path, err)
}
