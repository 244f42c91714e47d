package shims

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	for _, tc := range []struct {
		cmdline string
		want    bool
	}{
		{"/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id ID -address a", true},
		{"runc --root r create --bundle b ID", true},
		{"/opt/runc-1.5 state ID", true},
		{"runc delete other", false},
		{"runc delete IDENTICAL", false},
		{"ID", false},
		{"sleep ID", false},
		{"/bin/vi containerd-shim-ID", false},
		{"", false},
	} {
		if got := names(strings.Fields(tc.cmdline), "ID"); got != tc.want {
			t.Errorf("%q: %t", tc.cmdline, got)
		}
	}
}

// End ends processes with a shim's name that name the container, no others, and
// takes away the socket of one that listens.
func TestEnd(t *testing.T) {
	shim := filepath.Join(t.TempDir(), "containerd-shim-test-v1")
	if err := os.Symlink("/bin/sleep", shim); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join("/tmp", fmt.Sprintf("%064x", os.Getpid()))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	listening, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	// sleep takes numbers only, so the container's name is one.
	id := "0." + fmt.Sprint(os.Getpid())
	start := func(time string, files ...*os.File) *exec.Cmd {
		t.Helper()
		cmd := exec.Command(shim, "1000", time)
		cmd.ExtraFiles = files
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	named, other := start(id, listening), start(id+"1")
	for _, close := range []func() error{listening.Close, l.Close} {
		if err := close(); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- named.Wait() }()
	for range 2 { // the second finds nothing
		if err := End(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-ended; err == nil {
		t.Error("the shim was not killed")
	}
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its socket: %v", err)
	}
	if err := other.Process.Signal(os.Kill); err != nil {
		t.Errorf("another's shim has ended: %v", err)
	}
	_ = other.Wait() // killed just now
}
