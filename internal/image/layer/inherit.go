package layer

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Inherit gives the directories in dir that Apply made unasked the attributes
// that the nearest of the layers below has for them; parents are those layers'
// directories, the nearest first. Without it such a directory would hide the
// mode and owner of the one below.
func Inherit(dir string, implied, parents []string) (err error) {
	if len(implied) == 0 || len(parents) == 0 {
		return nil
	}
	var trees []*tree
	defer func() {
		for _, t := range trees {
			err = errors.Join(err, t.close())
		}
	}()
	for _, d := range append([]string{dir}, parents...) {
		fd, err := unix.Open(d, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("layer: open %s: %w", d, err)
		}
		trees = append(trees, &tree{root: fd, at: -1})
	}
	for _, name := range implied {
		if err := inherit(trees[0], trees[1:], name); err != nil {
			return fmt.Errorf("layer: attributes of %s: %w", name, err)
		}
	}
	return nil
}

func inherit(upper *tree, parents []*tree, name string) (err error) {
	to, err := upper.open(name)
	if gone(err) {
		return nil // a later entry replaced it
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(to)) }()
	for _, p := range parents {
		from, err := p.open(name)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if gone(err) {
			return nil // no directory there, or hidden: nothing to inherit
		}
		if err != nil {
			return err
		}
		return errors.Join(copyAttributes(to, from), unix.Close(from))
	}
	return nil
}

func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

func copyAttributes(to, from int) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return wrap("stat", err)
	}
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return wrap("chown", err)
	}
	if err := copyXattrs(to, from); err != nil {
		return err
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return wrap("chmod", err)
	}
	return wrap("times", utimes(to, "", [2]unix.Timespec{st.Atim, st.Mtim}))
}

// maxXattrs is what the kernel allows for all names, and for one value.
const maxXattrs = 64 << 10

func copyXattrs(to, from int) error {
	buf := make([]byte, maxXattrs)
	n, err := unix.Flistxattr(from, buf)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil
	}
	if err != nil {
		return wrap("list of extended attributes", err)
	}
	value := make([]byte, maxXattrs)
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.") {
			continue
		}
		n, err := unix.Fgetxattr(from, name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err == nil {
			err = unix.Fsetxattr(to, name, value[:n], 0)
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("extended attribute %s: %w", name, err)
		}
	}
	return nil
}
