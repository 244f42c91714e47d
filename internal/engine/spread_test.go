package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Each snapshot has its inodes in a part of the disk of its own, so that the
// next one does not meet those that the removal of the last one has freed.
func TestSnapshotsAreSpread(t *testing.T) {
	dir := tempDir(t)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		t.Skipf("the flag is ext4's, and %s is on another file system", dir)
	}
	e := start(t, dir)
	ctx := e.Context(t.Context())
	s := e.Client().SnapshotService("overlayfs")
	// The kernel chooses by the hash of a random name among the emptiest parts:
	// of so many, not all are in one.
	parts := map[uint64]bool{}
	for i := range 16 {
		mounts, err := s.Prepare(ctx, fmt.Sprint(i), "", keep())
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(mounts[0].Source, &st); err != nil {
			t.Fatal(err)
		}
		parts[st.Ino/inodesOfPart] = true
	}
	if fs.Files >= 16*inodesOfPart && len(parts) < 2 {
		t.Error("all snapshots are in one part of the disk")
	}
	closeEngine(t, e)
	start(t, dir) // once more changes nothing
}

// inodesOfPart is more than a flexible group of mke2fs's defaults has.
const inodesOfPart = 1 << 18

func TestSpreadOfWhatIsNotThere(t *testing.T) {
	if err := setTopDir(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Error(err)
	}
	// A file system without the flag.
	shm, err := os.MkdirTemp("/dev/shm", "berth-spread-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(shm); err != nil {
			t.Error(err)
		}
	})
	if err := setTopDir(shm); err != nil {
		t.Error(err)
	}
}
