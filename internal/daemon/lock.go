package daemon

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// lock takes what ("directory /x") for this process, until the file at path is
// closed. The file says who holds it.
func lock(what, path, address string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder, readErr := os.ReadFile(path)
		return nil, errors.Join(fmt.Errorf("%s is held by another berth (%s); stop it, or give this one a root, a state and an address of its own: %w",
			what, strings.TrimSpace(string(holder)), errdefs.ErrFailedPrecondition), readErr, file.Close())
	}
	if err == nil {
		err = file.Truncate(0)
	}
	if err == nil {
		_, err = fmt.Fprintf(file, "process %d, socket %s\n", os.Getpid(), address)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
	}
	return file, nil
}
