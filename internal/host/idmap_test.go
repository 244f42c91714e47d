package host

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// The source is left alone also where mounts propagate.
func TestBindMapped(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, UnmountBelow(dir)); must(t, Unmount(dir)) })
	must(t, unix.Mount("", dir, "", unix.MS_SHARED, ""))
	source, target, ns := filepath.Join(dir, "source"), filepath.Join(dir, "target"), filepath.Join(dir, "ns")
	must(t, os.Mkdir(source, 0o755))
	must(t, os.Mkdir(target, 0o755))
	must(t, os.WriteFile(filepath.Join(source, "file"), nil, 0o644))
	must(t, os.Chown(filepath.Join(source, "file"), 1, 2))
	must(t, PinNamespaces(ns, NamespaceOptions{User: testMap()}))
	for range 2 { // another one beside it
		must(t, BindMapped(source, target, filepath.Join(ns, userKind)))
	}
	owner := func(dir string) string {
		info, err := os.Stat(filepath.Join(dir, "file"))
		must(t, err)
		st := info.Sys().(*syscall.Stat_t)
		return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
	}
	if got := owner(target); got != fmt.Sprintf("%d:%d", testFirst+1, testFirst+2) {
		t.Errorf("mapped: %s", got)
	}
	if got := owner(source); got != "1:2" {
		t.Errorf("source: %s", got)
	}
	if mounted, err := mountinfo.Mounted(source); err != nil || mounted {
		t.Errorf("something is mounted at the source, %v", err)
	}
	if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o644); err == nil {
		t.Error("it can be written")
	}
	if err := BindMapped(source, target, filepath.Join(ns, "none")); err == nil {
		t.Error("no user namespace: no error")
	}
}
