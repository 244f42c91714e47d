package record

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A disk is a small file system, and a file on it that takes all that is free.
type disk struct {
	t    *testing.T
	dir  string
	file *os.File
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("berth-test", dir, "tmpfs", 0, "size=24m,mode=0700"); errors.Is(err, unix.EPERM) {
		t.Skip("mounting a small file system needs root")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	file, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return &disk{t, dir, file}
}

// fill takes what is free, to the last page.
func (d *disk) fill() {
	d.t.Helper()
	page := make([]byte, 4096)
	for {
		if _, err := d.file.Write(page); errors.Is(err, unix.ENOSPC) {
			return
		} else if err != nil {
			d.t.Fatal(err)
		}
	}
}

func (d *disk) free() {
	d.t.Helper()
	if err := d.file.Truncate(0); err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.file.Seek(0, 0); err != nil {
		d.t.Fatal(err)
	}
}

func (d *disk) records() string { return filepath.Join(d.dir, "records.db") }

func (d *disk) hasBallast() bool {
	d.t.Helper()
	info, err := os.Lstat(d.records() + ".ballast")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		d.t.Fatal(err)
	}
	return err == nil && info.Size() == ballastSize
}

// What filled the disk goes on taking all that becomes free, and still pods
// can be stopped and removed: more often than there is room for in the log.
func TestChangesGoOnOnAFullDisk(t *testing.T) {
	d := newDisk(t)
	s, _ := open(t, d.records())
	const boxes = 50
	for i := range boxes {
		if err := s.Sandboxes.Put(sandbox(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	if !d.hasBallast() {
		t.Fatal("no ballast")
	}
	for i := range 3 * logReserve / 4096 {
		d.fill()
		id := fmt.Sprint(i % boxes)
		if err := s.Begin("StopPodSandbox", id, "record"); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		if _, err := s.Sandboxes.Update(id, func(b *Sandbox) { b.State = SandboxStopped }); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		if err := s.End("StopPodSandbox", id); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
	}
	if d.hasBallast() {
		t.Error("the ballast is still there: the disk was not full")
	}
	for i := range boxes {
		if err := s.Sandboxes.Delete(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBallastIsMadeAgain(t *testing.T) {
	d := newDisk(t)
	s, _ := open(t, d.records())
	d.fill()
	for i := 0; d.hasBallast(); i++ {
		if err := s.Begin("Op", fmt.Sprint(i), "s"); err != nil {
			t.Fatal(err)
		}
	}
	checkpoint := func() {
		for range 3 { // of which one is waiting and one under way
			s.checkpoint <- struct{}{}
		}
	}
	d.fill()
	if checkpoint(); d.hasBallast() {
		t.Error("made on a full disk")
	}
	d.free()
	if checkpoint(); !d.hasBallast() {
		t.Error("not made again")
	}
}

// A daemon that was stopped starts on a full disk.
func TestOpenOnAFullDisk(t *testing.T) {
	d := newDisk(t)
	s, _ := open(t, d.records())
	if err := s.Sandboxes.Put(sandbox("x")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	d.fill()
	s, _ = open(t, d.records())
	if err := s.Sandboxes.Delete("x"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	d.fill()
	_, err := Open(t.Context(), d.records(), slog.New(slog.DiscardHandler))
	if !errdefs.IsResourceExhausted(err) {
		t.Errorf("without a ballast: %v", err)
	}
	d.free()
	open(t, d.records())
	if !d.hasBallast() {
		t.Error("not made again")
	}
}

// A file system that the kernel made read-only: the error says so, and the
// records stay.
func TestOpenOnAReadOnlyDisk(t *testing.T) {
	d := newDisk(t)
	s, _ := open(t, d.records())
	if err := errors.Join(s.Sandboxes.Put(sandbox("x")), s.Close()); err != nil {
		t.Fatal(err)
	}
	mount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", d.dir, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.file.Close(); err != nil {
		t.Fatal(err)
	}
	mount(unix.MS_RDONLY)
	_, err := Open(t.Context(), d.records(), slog.New(slog.DiscardHandler))
	if !errdefs.IsFailedPrecondition(err) || !errors.Is(err, unix.EROFS) {
		t.Errorf("err = %v", err)
	}
	mount(0)
	s, _ = open(t, d.records())
	if _, err := s.Sandboxes.Get("x"); err != nil {
		t.Error(err)
	}
}
