package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func shmState(t *testing.T, path string) string {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(path, &st))
	info, err := os.Stat(path)
	must(t, err)
	return fmt.Sprintf("%s%v size=%d", mountsBelow(t, path), info.Mode(), int64(st.Blocks)*st.Bsize)
}

func TestMountShm(t *testing.T) {
	path := filepath.Join(tempDir(t), "pod", "shm")
	for _, test := range []struct{ size, want int64 }{{0, DefaultShmSize}, {0, DefaultShmSize}, {1 << 20, 1 << 20}, {5000, 8192}, {5000, 8192}} {
		must(t, MountShm(path, test.size, 0, 0))
		want := fmt.Sprintf(". tmpfs rw nosuid nodev noexec relatime\ndtrwxrwxrwx size=%d", test.want)
		if diff := cmp.Diff(want, shmState(t, path)); diff != "" {
			t.Errorf("size %d: %s", test.size, diff)
		}
	}
	if err := MountShm(path, -1, 0, 0); !errdefs.IsInvalidArgument(err) {
		t.Errorf("negative size: %v", err)
	}
	f, err := os.Create(filepath.Join(path, "in-use"))
	must(t, err)
	defer f.Close()
	for range 2 {
		must(t, Unmount(path))
		if left := mountsBelow(t, path); left != "" {
			t.Error(left)
		}
	}

	must(t, unix.Mount("proc", path, "proc", 0, ""))
	if err := MountShm(path, 0, 0, 0); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("over another file system: %v", err)
	}
}

func TestUnmount(t *testing.T) {
	dir := tempDir(t)
	stacked := filepath.Join(dir, "stacked")
	must(t, os.Mkdir(stacked, 0o755))
	for range 3 {
		must(t, unix.Mount("x", stacked, "tmpfs", 0, ""))
	}
	link, file := filepath.Join(dir, "link"), filepath.Join(dir, "file")
	must(t, os.Symlink(stacked, link))
	write(t, file, "")
	for _, path := range []string{link, file, filepath.Join(file, "x"), filepath.Join(dir, "none"), dir} {
		must(t, Unmount(path))
	}
	if n := strings.Count(mountsBelow(t, dir), "\n"); n != 3 {
		t.Errorf("%d of 3 mounts left: a link was followed", n)
	}
	must(t, Unmount(stacked))
	if left := mountsBelow(t, dir); left != "" {
		t.Error(left)
	}
}

func TestUnmountBelow(t *testing.T) {
	dir := tempDir(t)
	mount := func(path string) {
		path = filepath.Join(dir, path)
		must(t, os.MkdirAll(path, 0o755))
		must(t, unix.Mount("x", path, "tmpfs", 0, ""))
	}
	for _, path := range []string{"pod", "pod/a", "pod/a/b/c", "pod/a b", "pod/a", "pod2"} {
		mount(path)
	}
	must(t, os.Symlink(filepath.Join(dir, "pod"), filepath.Join(dir, "link")))
	must(t, UnmountBelow(filepath.Join(dir, "none")))
	for range 2 {
		must(t, UnmountBelow(filepath.Join(dir, "link")))
		if diff := cmp.Diff("pod tmpfs rw relatime\npod2 tmpfs rw relatime\n", mountsBelow(t, dir)); diff != "" {
			t.Error(diff)
		}
	}
}

// tree renders what is in a directory.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var text strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if path != dir && err == nil {
			rel, _ := filepath.Rel(dir, path)
			fmt.Fprintln(&text, rel)
		}
		return err
	}))
	return text.String()
}

// memoryDir is on a tmpfs: a disk would make many files slow.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(tempDir(t), "memory")
	must(t, os.Mkdir(dir, 0o755))
	must(t, unix.Mount("memory", dir, "tmpfs", 0, ""))
	return dir
}

func TestRemoveTree(t *testing.T) {
	root := memoryDir(t)
	outside := filepath.Join(tempDir(t), "outside")
	write(t, filepath.Join(outside, "kept"), "")
	full := func(path string) string { return filepath.Join(root, path) }
	for i := range 3000 {
		write(t, full(fmt.Sprintf("a/wide/%d", i)), "")
	}
	write(t, full("a/some/file"), "")
	write(t, full("ab/kept"), "")
	write(t, full("nested/kept"), "")
	write(t, full("nested/gone/x/y"), "")
	write(t, full("plain"), "")
	must(t, os.Symlink(outside, full("a/link")))
	must(t, os.Symlink(outside, full("top-link")))
	must(t, unix.Mkfifo(full("a/fifo"), 0o600))
	must(t, os.Chmod(full("a/some"), 0))

	for range 2 {
		for _, name := range []string{"a", "nested/gone", "plain", "top-link", "none", "none/below"} {
			if err := RemoveTree(root, name); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	must(t, RemoveTree(full("no-root"), "x"))
	if diff := cmp.Diff("ab\nab/kept\nnested\nnested/kept\n", tree(t, root)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff("kept\n", tree(t, outside)); diff != "" {
		t.Error(diff)
	}
}

func TestRemoveTreeRefuses(t *testing.T) {
	root := tempDir(t)
	outside := tempDir(t)
	write(t, filepath.Join(outside, "kept"), "")
	must(t, os.Symlink(outside, filepath.Join(root, "link")))
	for _, name := range []string{"", ".", "..", "../x", "a/..", "a/../..", outside} {
		if err := RemoveTree(root, name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := RemoveTree(root, "link/kept"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("through a link: %v", err)
	}
	for _, name := range []string{"top", "dir/in", "dir2/file"} {
		path := filepath.Join(root, name)
		if name == "dir2/file" {
			write(t, path, "")
			must(t, unix.Mount(filepath.Join(outside, "kept"), path, "", unix.MS_BIND, ""))
		} else {
			must(t, os.MkdirAll(path, 0o755))
			must(t, unix.Mount(outside, path, "", unix.MS_BIND, ""))
		}
		first := strings.Split(name, "/")[0]
		if err := RemoveTree(root, first); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s, with a mount: %v", first, err)
		}
		must(t, Unmount(path))
		must(t, RemoveTree(root, first))
	}
	if diff := cmp.Diff("kept\n", tree(t, outside)); diff != "" {
		t.Error(diff)
	}
}

// deepen makes a chain of directories, each with a file, below dir.
func deepen(t *testing.T, dir string, depth int) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	fd, err := unix.Open(dir, unix.O_DIRECTORY, 0)
	must(t, err)
	for range depth {
		must(t, unix.Mkdirat(fd, "d", 0o755))
		next, err := unix.Openat(fd, "d", unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, unix.Mknodat(next, "f", unix.S_IFREG|0o600, 0))
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
}

// A container can make a tree deeper than a path may be long and than files
// may be open.
func TestRemoveDeepTree(t *testing.T) {
	root := memoryDir(t)
	deepen(t, filepath.Join(root, "vol"), 5000)
	deepen(t, filepath.Join(root, "vol", "second"), 300)
	// As a daemon that was killed would leave them.
	deepen(t, filepath.Join(root, "vol.removing", "1"), 10)
	deepen(t, filepath.Join(root, "vol.removing", "7"), 250)
	write(t, filepath.Join(root, "vol2"), "")
	must(t, RemoveTree(root, "vol"))
	if diff := cmp.Diff("vol2\n", tree(t, root)); diff != "" {
		t.Error(diff)
	}
	deepen(t, filepath.Join(root, "vol.removing", "1"), 10)
	must(t, RemoveTree(root, "vol"))
	if diff := cmp.Diff("vol2\n", tree(t, root)); diff != "" {
		t.Error(diff)
	}
}
