package host

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestInNetNS(t *testing.T) {
	dir := tempDir(t)
	file := filepath.Join(dir, "file")
	write(t, file, "")
	called := func() error { t.Error("called"); return nil }
	for _, path := range []string{filepath.Join(dir, "none"), file, "/proc/self/ns/uts"} {
		if err := InNetNS(path, called); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
	want := fmt.Errorf("its own")
	if err := InNetNS("/proc/self/ns/net", func() error { return want }); err != want {
		t.Errorf("error %v", err)
	}
	if err := InNetNS("/proc/self/ns/net", func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("a function that ends its goroutine is no success")
	}
	func() {
		defer func() {
			if p := fmt.Sprint(recover()); !strings.HasPrefix(p, "ouch") || !strings.Contains(p, "TestInNetNS") {
				t.Errorf("recovered %s", p)
			}
		}()
		InNetNS("/proc/self/ns/net", func() error { panic("ouch") })
	}()
}

func TestStartIn(t *testing.T) {
	dir := filepath.Join(tempDir(t), "ns")
	must(t, PinNamespaces(dir, NamespaceOptions{Net: true, IPC: true, UTS: true}))
	defer UnpinNamespaces(dir)
	init := sleeper(t, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS})
	must(t, PinPID(filepath.Join(dir, pidKind), init.Process.Pid))

	var out bytes.Buffer
	cmd := exec.Command("/bin/sh", "-c", "echo $$")
	cmd.Stdout = &out
	must(t, StartIn([]string{filepath.Join(dir, pidKind)}, cmd))
	must(t, cmd.Wait())
	if out.String() != "2\n" { // after its init
		t.Errorf("number %q in the PID namespace", out.String())
	}

	var paths []string
	kinds := []string{pidKind, netKind, ipcKind, utsKind}
	for _, kind := range kinds {
		paths = append(paths, filepath.Join(dir, kind))
	}
	// What is in another mount namespace has the same files here.
	paths, kinds = append(paths, fmt.Sprintf("/proc/%d/ns/mnt", init.Process.Pid)), append(kinds, "mnt")
	cmd = exec.Command("sleep", "1000")
	must(t, StartIn(paths, cmd))
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	for i, kind := range kinds {
		if have, want := inode(t, fmt.Sprintf("/proc/%d/ns/%s", cmd.Process.Pid, kind)), inode(t, paths[i]); have != want {
			t.Errorf("%s: in %d, want %d", kind, have, want)
		}
	}
}

func TestStartInErrors(t *testing.T) {
	if err := StartIn([]string{"/nonexistent"}, exec.Command("true")); !errdefs.IsNotFound(err) {
		t.Errorf("no namespace: %v", err)
	}
	if err := StartIn([]string{"/proc/self/ns/net"}, exec.Command("/nonexistent")); !os.IsNotExist(err) {
		t.Errorf("no program: %v", err)
	}
	cmd := exec.Command("true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := StartIn([]string{"/proc/self/ns/net"}, cmd); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Pdeathsig: %v", err)
	}
	cmd = exec.Command("true")
	must(t, StartIn(nil, cmd))
	must(t, cmd.Wait())
}

func BenchmarkInNetNS(b *testing.B) {
	dir := filepath.Join(tempDir(b), "ns")
	must(b, PinNamespaces(dir, NamespaceOptions{Net: true}))
	defer UnpinNamespaces(dir)
	defer reportCPU(b)()
	for b.Loop() {
		must(b, InNetNS(filepath.Join(dir, netKind), func() error { return nil }))
	}
}
