package layer

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks bounds the symbolic links on the way to one directory.
const maxLinks = 255

// A tree reaches directories below a root that it cannot leave.
type tree struct {
	root int // descriptor
	// at is the descriptor of the directory named atName, or -1: entries of one
	// directory follow each other. plain tells that what is made in it has the
	// owner and the mode that it is made with.
	at     int
	atName string
	plain  bool
	// stale makes the next entry look at its directory again. at stays open for
	// this one.
	stale bool
	// implied are the directories made unasked, by their paths without links.
	implied map[string]bool
}

func (t *tree) close() error {
	t.forget()
	return unix.Close(t.root)
}

// forget drops what is remembered of the last directory: its name may lead
// elsewhere now, or its attributes are others.
func (t *tree) forget() {
	if t.at >= 0 {
		_ = unix.Close(t.at) // opened for reading: nothing is lost
		t.at = -1
	}
}

// dir opens the directory that name leads to, and makes it where it is
// missing. The descriptor is the tree's.
func (t *tree) dir(name string) (int, error) {
	if t.at >= 0 && t.atName == name && !t.stale {
		return t.at, nil
	}
	t.stale = false
	t.forget()
	fd, err := t.open(name)
	if errors.Is(err, unix.ENOENT) {
		fd, err = t.makeAll(name)
	}
	if err != nil {
		return -1, wrap("open directory "+name, err)
	}
	t.at, t.atName = fd, name
	t.plain, err = plain(fd)
	return fd, err
}

// plain tells that neither a set-group-ID bit nor a default ACL of the
// directory changes what is made in it.
func plain(fd int) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, wrap("stat", err)
	}
	if st.Mode&unix.S_ISGID != 0 {
		return false, nil
	}
	_, err := unix.Fgetxattr(fd, "system.posix_acl_default", nil)
	return errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP), nil
}

// open opens a directory below the root; links are followed as if the root were
// that of the file system.
func (t *tree) open(name string) (int, error) { return t.openHow(name, 0) }

func (t *tree) openHow(name string, flags uint64) (int, error) {
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | flags,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for range 1000 {
		fd, err := unix.Openat2(t.root, name, &how)
		// EAGAIN: somebody renamed something somewhere while ".." was resolved.
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// makeAll makes the directories that are missing on the way to name, also
// where a link leads to one that is missing, and opens the last.
func (t *tree) makeAll(name string) (int, error) {
	name, err := t.resolve(name)
	if err != nil {
		return -1, err
	}
	done := ""
	for part := range strings.SplitSeq(name, "/") {
		if part == "" {
			continue
		}
		if err := t.makeOne(done, part); err != nil {
			return -1, err
		}
		done = path.Join(done, part)
	}
	return t.open(done)
}

// resolve is name without links. What is missing is taken for what is no link.
func (t *tree) resolve(name string) (string, error) {
	done, links := "", 0
	rest := strings.Split(name, "/")
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			done = inRoot(path.Dir("/" + done))
			continue
		}
		target, err := t.follow(done, part)
		if err != nil {
			return "", err
		}
		if target == "" {
			done = path.Join(done, part)
			continue
		}
		if links++; links > maxLinks {
			return "", unix.ELOOP
		}
		if path.IsAbs(target) {
			done = ""
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return done, nil
}

// follow returns where part leads if it is a link in done, which has none.
func (t *tree) follow(done, part string) (target string, err error) {
	fd, err := t.open(done)
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	target, err = readlink(fd, part)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	return target, err
}

// makeOne makes sure that part is a directory in done.
func (t *tree) makeOne(done, part string) (err error) {
	fd, err := t.open(done)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	err = unix.Mkdirat(fd, part, 0o755)
	if errors.Is(err, unix.EEXIST) {
		return nil // if it is no directory, opening it will say so
	}
	if err != nil {
		return err
	}
	t.implied[path.Join(done, part)] = true
	return unix.Fchmodat(fd, part, 0o755, 0)
}

func readlink(dir int, base string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, base, buf)
	if err != nil {
		return "", err
	}
	if n == 0 {
		return "", unix.ENOENT
	}
	return string(buf[:n]), nil
}

// below is the path of an entry of dir as the kernel names it. It is for calls
// that take no descriptor.
func below(dir int, base string) string { return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + base }

// replace removes an entry with all that is in it.
func (t *tree) replace(dir int, base string) error {
	err := unix.Unlinkat(dir, base, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		err = os.RemoveAll(below(dir, base))
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", base, err)
	}
	t.stale = true // the name of the next directory may have led through it
	return nil
}

// explicit notes that the layer itself describes a directory.
func (t *tree) explicit(dir int, base string) {
	if len(t.implied) == 0 {
		return
	}
	root, err := os.Readlink(strings.TrimSuffix(below(t.root, ""), "/"))
	if err != nil {
		return
	}
	at, err := os.Readlink(strings.TrimSuffix(below(dir, ""), "/"))
	if err != nil {
		return
	}
	delete(t.implied, inRoot(strings.TrimPrefix(at+"/"+base, root)))
}

func (t *tree) impliedNames() []string { return slices.Sorted(maps.Keys(t.implied)) }
