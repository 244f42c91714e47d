// Package layer writes an image's layer, a tar stream of what a file system
// changed, into a directory while the stream arrives.
//
// The tree is the one that containerd's archive.Apply makes; tests compare the
// two. It differs in three things:
//   - A layer may hold a file whose directory it does not describe. The layers
//     below may not be there yet, so the directory is made with mode 0755, and
//     Inherit gives it the attributes of the one below later.
//   - In the lowest layer an opaque directory hides nothing: what is in it is
//     the layer's own.
//   - A directory that a later entry has replaced keeps its times to itself.
//
// Invariants:
//   - Nothing outside of the directory is read or written, whatever names and
//     links a layer holds: each directory is reached through openat2 with
//     RESOLVE_IN_ROOT, and what is in it by its bare name, never followed.
//   - Memory is bounded: a few buffers for each stream, a window of at most
//     128 MiB for zstd. Only the names of directories are kept until the end.
//   - No file is synced.
//
// Concurrency: a directory is written by one Apply at a time, and by nobody
// else meanwhile. A Pipe has one writer and one reader.
package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Options say where a layer belongs.
type Options struct {
	// Lowest is a layer with none below. In any other, whiteouts become what
	// overlayfs understands; in this one they remove what came before them, as
	// containerd does.
	Lowest bool
}

const (
	whiteout       = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// copySize is the most that is written into a file at once.
const copySize = 64 << 10

// An applier is one Apply under way.
type applier struct {
	tree
	lowest bool
	buf    []byte
	dirs   []dirTimes
}

// dirTimes are set at the end: making a file in a directory changes its own.
type dirTimes struct {
	name  string
	times [2]unix.Timespec
}

// Apply writes the tar stream r into dir and returns the directories that it
// had to make without being told of them, for Inherit. It reads r to the end
// of the tar, not beyond. What is there after an error is of no use.
//
// Errors: ErrInvalidArgument for a stream that is no layer; those of r.
func Apply(ctx context.Context, dir string, r io.Reader, o Options) (implied []string, err error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("layer: open %s: %w", dir, err)
	}
	a := &applier{tree: tree{root: root, at: -1, implied: map[string]bool{}}, lowest: o.Lowest}
	defer func() { err = errors.Join(err, a.close()) }()
	t := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if errors.Is(err, tar.ErrHeader) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return nil, fmt.Errorf("layer: %w", err)
		}
		if err := a.entry(ctx, h, t); err != nil {
			return nil, fmt.Errorf("layer: entry %q: %w", h.Name, err)
		}
	}
	if err := a.setDirTimes(); err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	return a.impliedNames(), nil
}

// inRoot is a name of the archive as a path below the root, "" for the root.
func inRoot(name string) string { return path.Clean("/" + name)[1:] }

func (a *applier) entry(ctx context.Context, h *tar.Header, r io.Reader) error {
	name := inRoot(h.Name)
	if name == "" || h.Typeflag == tar.TypeXGlobalHeader {
		return nil // the root's own attributes are the snapshotter's
	}
	parent, base := path.Split(name)
	dir, err := a.dir(strings.TrimSuffix(parent, "/"))
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteout) {
		return a.whiteout(dir, base, h)
	}
	made, err := a.make(ctx, dir, base, h, r)
	if errors.Is(err, unix.EEXIST) {
		if err := a.replace(dir, base); err != nil {
			return err
		}
		made, err = a.make(ctx, dir, base, h, r)
	}
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		a.explicit(dir, base)
		a.dirs = append(a.dirs, dirTimes{name, timesOf(h)})
	}
	return a.describe(dir, base, h, made)
}

// whiteout hides what the layers below have under that name.
func (a *applier) whiteout(dir int, base string, h *tar.Header) error {
	if base == whiteoutOpaque {
		if a.lowest {
			return nil
		}
		return wrap("mark as opaque", unix.Fsetxattr(dir, "trusted.overlay.opaque", []byte{'y'}, 0))
	}
	hidden := strings.TrimPrefix(base, whiteout)
	if hidden == "" || hidden == "." || hidden == ".." {
		return fmt.Errorf("a whiteout of no name: %w", errdefs.ErrInvalidArgument)
	}
	if a.lowest {
		err := a.replace(dir, hidden)
		if errors.Is(err, unix.ENOENT) {
			err = nil
		}
		return err
	}
	if err := unix.Mknodat(dir, hidden, unix.S_IFCHR, 0); err != nil {
		return wrap("whiteout", err)
	}
	return wrap("chown of whiteout", unix.Fchownat(dir, hidden, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW))
}

// setDirTimes runs when nothing more is made. A directory that a later entry
// replaced has its own.
func (a *applier) setDirTimes() error {
	for _, d := range a.dirs {
		fd, err := a.openHow(d.name, unix.O_NOFOLLOW)
		if gone(err) {
			continue
		}
		if err != nil {
			return wrap("open "+d.name, err)
		}
		err = errors.Join(utimes(fd, "", d.times), unix.Close(fd))
		if err != nil {
			return wrap("times of "+d.name, err)
		}
	}
	return nil
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
