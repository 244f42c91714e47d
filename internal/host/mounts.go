package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// DefaultShmSize is the size of a pod's /dev/shm where none is asked for.
const DefaultShmSize = 64 << 20

const shmFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// maxStacked bounds how many mounts on one path are taken away.
const maxStacked = 64

// MountShm mounts a tmpfs of the size in bytes, 0 for the default, for
// everybody to use as /dev/shm; uid and gid own it. One that is there is kept,
// with its size set.
func MountShm(path string, size int64, uid, gid int) error {
	if size < 0 {
		return fmt.Errorf("mount shm at %s: size %d: %w", path, size, errdefs.ErrInvalidArgument)
	}
	if size == 0 {
		size = DefaultShmSize
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("mount shm: %w", err)
	}
	mounted, err := mountinfo.Mounted(path)
	if err != nil {
		return fmt.Errorf("mount shm at %s: %w", path, err)
	}
	flags := uintptr(shmFlags)
	if mounted {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil {
			return fmt.Errorf("mount shm at %s: %w", path, err)
		}
		if st.Type != unix.TMPFS_MAGIC {
			return fmt.Errorf("mount shm at %s: another file system is mounted there; unmount it: %w", path, errdefs.ErrFailedPrecondition)
		}
		page := int64(os.Getpagesize())
		if st.Blocks == uint64((size+page-1)/page) {
			return nil
		}
		flags |= unix.MS_REMOUNT
	}
	if err := unix.Mount("shm", path, "tmpfs", flags, fmt.Sprintf("mode=1777,size=%d,uid=%d,gid=%d", size, uid, gid)); err != nil {
		return fmt.Errorf("mount shm of %d bytes at %s: %w", size, path, err)
	}
	return nil
}

// Unmount takes away whatever is mounted at path, all layers of it. It does
// not wait for users of the mount: they keep it until they are done. A path
// with no mount, or none at all, is no error. It does not follow a link.
func Unmount(path string) error {
	for range maxStacked {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return nil
		case err != nil:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return fmt.Errorf("unmount %s: still mounted after %d times: %w", path, maxStacked, errdefs.ErrFailedPrecondition)
}

// UnmountBelow takes away every mount below dir, but not one at dir itself. It
// goes on after a failure and reports them all.
func UnmountBelow(dir string) error {
	// The kernel's table holds paths without symbolic links.
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unmount below %s: %w", dir, err)
	}
	prefix := strings.TrimSuffix(real, "/") + "/"
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, prefix), false
	})
	if err != nil {
		return fmt.Errorf("unmount below %s: %w", dir, err)
	}
	var failed []error
	for i := len(mounts) - 1; i >= 0; i-- { // a later mount may be on an earlier one
		if err := Unmount(mounts[i].Mountpoint); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}
