package host

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// ResolveIn follows name within dir as a process would whose root is dir:
// symbolic links and ".." stay in it. The path that it returns has no symbolic
// link below dir, which must have none itself. ErrNotFound: there is no such
// file.
func ResolveIn(dir, name string) (string, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s to look for %q: %w", dir, name, err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return "", fmt.Errorf("%q does not exist there: %w", name, errdefs.ErrNotFound)
	case err != nil:
		return "", fmt.Errorf("follow %q: %w", name, err)
	}
	defer unix.Close(fd)
	found, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", fmt.Errorf("follow %q: %w", name, err)
	}
	if found != dir && !strings.HasPrefix(found, strings.TrimSuffix(dir, "/")+"/") {
		return "", fmt.Errorf("follow %q: %s is not in %s: %w", name, found, dir, errdefs.ErrFailedPrecondition)
	}
	return found, nil
}
