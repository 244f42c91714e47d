package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// within refuses to leave a directory: by "..", by a symbolic link, into
// another mount.
const within = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV

// maxDepth bounds how many directories are open at a time. A container may
// have made a tree of any depth.
const maxDepth = 100

// RemoveTree removes name, a relative path below root, with all that is in it.
// It never leaves root, follows no symbolic link and crosses no mount: where
// something is mounted, it ends with ErrFailedPrecondition. What is not there
// is removed.
func RemoveTree(root, name string) error {
	clean := filepath.Clean(name)
	if name == "" || clean == "." || !filepath.IsLocal(name) {
		return fmt.Errorf("remove %q in %s: not a path below it: %w", name, root, errdefs.ErrInvalidArgument)
	}
	top, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s in %s: %w", clean, root, err)
	}
	defer unix.Close(top)
	parent, err := openDir(top, filepath.Dir(clean))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return treeError(filepath.Join(root, filepath.Dir(clean)), err)
	}
	defer unix.Close(parent)
	r := remover{parent: parent, base: filepath.Base(clean), path: filepath.Join(root, clean)}
	defer r.close()
	if err := r.remove(parent, r.base, r.path, 0); err != nil {
		return err
	}
	return r.removeAside()
}

// A remover removes one tree. What lies too deep is moved into a directory
// beside the tree and removed from there.
type remover struct {
	parent     int // the directory that holds the tree
	base, path string
	aside      int // open where not 0
	moved      int
}

// remove removes one entry of a directory; path is for messages.
func (r *remover) remove(dir int, name, path string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM):
		return treeError(path, err)
	}
	if depth == maxDepth {
		return r.moveAside(dir, name, path)
	}
	fd, openErr := openDir(dir, name)
	if errors.Is(openErr, unix.ENOENT) {
		return nil
	}
	if errors.Is(openErr, unix.ENOTDIR) {
		return treeError(path, err) // a file that may not be removed
	}
	if openErr != nil {
		return treeError(path, openErr)
	}
	err = r.empty(fd, path, depth)
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return treeError(path, err)
	}
	return nil
}

// empty removes all entries of the directory fd and closes it.
func (r *remover) empty(fd int, path string, depth int) error {
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	for {
		// From the start each time: entries vanish under the reader.
		if _, err := f.Seek(0, 0); err != nil {
			return treeError(path, err)
		}
		names, err := f.Readdirnames(-1)
		if err != nil {
			return treeError(path, err)
		}
		if len(names) == 0 {
			return nil
		}
		for _, name := range names {
			if err := r.remove(fd, name, filepath.Join(path, name), depth+1); err != nil {
				return err
			}
		}
	}
}

// asideName starts with the tree's name: who lists what an object left finds
// it.
func (r *remover) asideName() string { return fmt.Sprintf("%.200s.removing", r.base) }

func (r *remover) close() {
	if r.aside != 0 {
		unix.Close(r.aside)
	}
}

// openAside opens the directory beside the tree.
func (r *remover) openAside() (err error) {
	if r.aside == 0 {
		var fd int
		if fd, err = openDir(r.parent, r.asideName()); err == nil {
			r.aside = fd
		}
	}
	return err
}

func (r *remover) moveAside(dir int, name, path string) error {
	if err := unix.Mkdirat(r.parent, r.asideName(), 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return treeError(path, err)
	}
	if err := r.openAside(); err != nil {
		return treeError(path, err)
	}
	for {
		r.moved++ // a number may be there since an attempt that was cut
		err := unix.Renameat2(dir, name, r.aside, strconv.Itoa(r.moved), unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return treeError(path, err)
		}
		return nil
	}
}

// removeAside removes what was moved aside, now or by an attempt that was cut.
func (r *remover) removeAside() error {
	err := r.openAside()
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	path := filepath.Join(filepath.Dir(r.path), r.asideName())
	if err != nil {
		return treeError(path, err)
	}
	fd, err := unix.FcntlInt(uintptr(r.aside), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return treeError(path, err)
	}
	if err := r.empty(fd, path, 0); err != nil {
		return err
	}
	if err := unix.Unlinkat(r.parent, r.asideName(), unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return treeError(path, err)
	}
	return nil
}

func openDir(dir int, name string) (int, error) {
	for {
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: within,
		})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) { // EAGAIN: a rename was under way
			return fd, err
		}
	}
}

func treeError(path string, err error) error {
	switch {
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EBUSY):
		return fmt.Errorf("remove %s: something is mounted there; unmount it first: %w: %w", path, err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("remove %s: a symbolic link or a file is on the way: %w: %w", path, err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("remove %s: not permitted; is it immutable (lsattr)?: %w", path, err)
	}
	return fmt.Errorf("remove %s: %w", strings.TrimSuffix(path, "/"), err)
}
