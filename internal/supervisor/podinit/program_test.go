package podinit

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The program is what the kernel wants, ends on SIGTERM and SIGINT, and on
// nothing else. That it reaps is tested as PID 1, in internal/supervisor.
func TestProgram(t *testing.T) {
	content, err := Program()
	if err != nil {
		t.Fatal(err)
	}
	if len(content) > 512 {
		t.Errorf("%d bytes", len(content))
	}
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Progs) != 2 || f.Progs[0].Flags != elf.PF_R|elf.PF_X || f.Entry >= f.Progs[0].Vaddr+f.Progs[0].Memsz {
		t.Errorf("entry %#x, segments %+v", f.Entry, f.Progs)
	}
	path := filepath.Join(t.TempDir(), Name)
	if err := os.WriteFile(path, content, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, end := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		cmd := exec.Command(path)
		if err := startBlocked(cmd); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for range 3 {
			if err := cmd.Process.Signal(unix.SIGCHLD); err != nil {
				t.Error(err)
			}
		}
		select {
		case err := <-ended:
			t.Fatalf("it ended on SIGCHLD: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		if err := cmd.Process.Signal(end); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Errorf("on %v: %v", end, err)
		}
	}
}

// startBlocked starts cmd with the signals blocked, as Setup leaves them.
func startBlocked(cmd *exec.Cmd) error {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // and end the thread with the goroutine
		if err := blockSignals(); err != nil {
			failed <- err
			return
		}
		failed <- cmd.Start()
	}()
	return <-failed
}
