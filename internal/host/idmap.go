package host

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// BindMapped mounts the directory source at target, read-only, with the owners
// that its files have in the user namespace at userNS. The mount is made apart
// and put in its place: one that is laid over a bind mount of source would show
// at source, too, where mounts are shared.
func BindMapped(source, target, userNS string) error {
	fail := func(what string, err error) error {
		return fmt.Errorf("mount %s with the users of %s: %s: %w", source, userNS, what, err)
	}
	ns, err := openNamespace(userNS)
	if err != nil {
		return fail("its users", err)
	}
	defer unix.Close(ns)
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fail("clone", err)
	}
	defer unix.Close(tree)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE, Userns_fd: uint64(ns)}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return fail("its file system cannot do that", err)
		}
		return fail("set", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fail("move to "+target, err)
	}
	return nil
}
