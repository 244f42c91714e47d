package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// paxXattr is the prefix of an extended attribute's record.
const paxXattr = "SCHILY.xattr."

// umask is the process's, all bits where it cannot be read. Who relies on it is
// in a daemon that never changes it.
var umask = sync.OnceValue(func() uint32 {
	status, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(status), "\nUmask:")
	line, _, _ := strings.Cut(rest, "\n")
	mask, err := strconv.ParseUint(strings.TrimSpace(line), 8, 32)
	if err != nil || os.Geteuid() != 0 || os.Getegid() != 0 {
		return 0o7777
	}
	return uint32(mask)
})

// made tells what was made, so that what it has already is not set again.
type made struct {
	fresh   bool // with the mode asked for, and the process's owner
	symlink bool
}

// make makes the entry without its attributes. It fails with EEXIST where
// something else is in its place.
func (a *applier) make(ctx context.Context, dir int, base string, h *tar.Header, r io.Reader) (made, error) {
	mode := uint32(h.Mode & 0o7777)
	fresh := made{fresh: a.plain && mode&umask() == 0 && mode&^0o777 == 0}
	switch h.Typeflag {
	case tar.TypeReg:
		return fresh, a.file(ctx, dir, base, mode, r)
	case tar.TypeDir:
		err := unix.Mkdirat(dir, base, mode)
		if errors.Is(err, unix.EEXIST) && isDir(dir, base) {
			a.stale = true // if it is the next entry's directory, its attributes are others
			return made{}, nil
		}
		return fresh, err
	case tar.TypeSymlink:
		return made{fresh: a.plain, symlink: true}, unix.Symlinkat(h.Linkname, dir, base)
	case tar.TypeLink:
		return a.link(dir, base, h.Linkname)
	case tar.TypeBlock, tar.TypeChar, tar.TypeFifo:
		return fresh, device(dir, base, h)
	}
	return made{}, fmt.Errorf("unknown type %q: %w", h.Typeflag, errdefs.ErrInvalidArgument)
}

func isDir(dir int, base string) bool {
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

func (a *applier) file(ctx context.Context, dir int, base string, mode uint32, r io.Reader) (err error) {
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if a.buf == nil {
		a.buf = make([]byte, copySize)
	}
	for {
		n, err := fill(r, a.buf)
		if werr := writeAll(fd, a.buf[:n]); werr != nil {
			return wrap("write", werr)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// fill reads until p is full. Other than io.ReadFull it passes on which end was
// met: that of a file, or that of a stream that was cut.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// link makes a hard link to what this layer has made before.
func (a *applier) link(dir int, base, target string) (m made, err error) {
	parent, name := path.Split(inRoot(target))
	if name == "" {
		return m, fmt.Errorf("hard link to the root: %w", errdefs.ErrInvalidArgument)
	}
	from, err := a.open(parent)
	if err != nil {
		return m, wrap("hard link to "+target, err)
	}
	defer func() { err = errors.Join(err, unix.Close(from)) }()
	if err := unix.Linkat(from, name, dir, base, 0); err != nil {
		return m, wrap("hard link to "+target, err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return m, wrap("stat", err)
	}
	m.symlink = st.Mode&unix.S_IFMT == unix.S_IFLNK
	return m, nil
}

func device(dir int, base string, h *tar.Header) error {
	if h.Devmajor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor < 0 || h.Devminor > math.MaxUint32 {
		return fmt.Errorf("device number %d:%d: %w", h.Devmajor, h.Devminor, errdefs.ErrInvalidArgument)
	}
	mode := uint32(h.Mode & 0o7777)
	switch h.Typeflag {
	case tar.TypeBlock:
		mode |= unix.S_IFBLK
	case tar.TypeChar:
		mode |= unix.S_IFCHR
	case tar.TypeFifo:
		mode |= unix.S_IFIFO
	}
	return unix.Mknodat(dir, base, mode, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
}

// describe sets owner, extended attributes, mode and times, in the order in
// which one does not undo the other.
func (a *applier) describe(dir int, base string, h *tar.Header, m made) error {
	owned := m.fresh && h.Uid == 0 && h.Gid == 0 && umask() != 0o7777
	if !owned {
		if err := unix.Fchownat(dir, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("chown to %d:%d: %w", h.Uid, h.Gid, err)
		}
	}
	attributes, err := setXattrs(dir, base, h)
	if err != nil {
		return err
	}
	if !m.symlink && !(m.fresh && owned && !attributes) {
		if err := unix.Fchmodat(dir, base, uint32(h.Mode&0o7777), 0); err != nil {
			return wrap("chmod", err)
		}
	}
	return wrap("times", utimes(dir, base, timesOf(h)))
}

func setXattrs(dir int, base string, h *tar.Header) (some bool, err error) {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || strings.HasPrefix(name, "trusted.") {
			continue // trusted ones are for overlayfs to tell layers by
		}
		some = true
		err := unix.Lsetxattr(below(dir, base), name, []byte(value), 0)
		switch {
		case err == nil, errors.Is(err, unix.ENOTSUP):
		case errors.Is(err, unix.EPERM) && strings.HasPrefix(name, "user.") && h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir:
			// The kernel allows them on files and directories only.
		default:
			return some, fmt.Errorf("extended attribute %s: %w", name, err)
		}
	}
	return some, nil
}

var (
	minTime = time.Unix(0, 0)
	maxTime = time.Unix(0, math.MaxInt64)
)

// timesOf are the times of access and change; what the kernel's type does not
// hold is 1970.
func timesOf(h *tar.Header) [2]unix.Timespec {
	access := h.AccessTime
	if access.Before(h.ModTime) {
		access = h.ModTime
	}
	var times [2]unix.Timespec
	for i, t := range []time.Time{access, h.ModTime} {
		if t.Before(minTime) || t.After(maxTime) {
			t = minTime
		}
		times[i] = unix.NsecToTimespec(t.UnixNano())
	}
	return times
}

// utimes sets the times of an entry of dir, with base empty those of dir.
func utimes(dir int, base string, times [2]unix.Timespec) error {
	if base != "" {
		return unix.UtimesNanoAt(dir, base, times[:], unix.AT_SYMLINK_NOFOLLOW)
	}
	// Without a name the call is about the descriptor.
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(dir), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
