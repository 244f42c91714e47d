package network

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

// claimsIn puts the files of claims into a directory of the test's.
func claimsIn(t *testing.T) string {
	before := claimDir
	claimDir = filepath.Join(t.TempDir(), "claims")
	t.Cleanup(func() { claimDir = before })
	return claimDir
}

func TestClaimsComeAndGo(t *testing.T) {
	dir := claimsIn(t)
	// What every user of the machine can make: a socket of that name.
	socket, err := net.ListenPacket("unixgram", "@berth-network berth0")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	var first, second claims
	if err := first.take([]string{"berth0", "10.77.0.0/16"}); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(dir + "/*")
	if err != nil || len(files) != 2 {
		t.Fatalf("files %v, %v", files, err)
	}
	for _, path := range append(files, dir) {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if err := second.take([]string{"10.77.0.0/16"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second daemon: %v", err)
	}
	if err := first.take([]string{"berth0"}); err != nil {
		t.Error(err)
	}
	if err := second.take([]string{"10.77.0.0/16"}); err != nil {
		t.Error(err)
	}
	if err := errors.Join(first.release(), second.release()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory stays: %v", err)
	}
}

// A killed daemon's file claims nothing.
func TestClaimOfAKilledDaemon(t *testing.T) {
	claimsIn(t)
	var killed, next claims
	if err := killed.take([]string{"berth0"}); err != nil {
		t.Fatal(err)
	}
	for _, file := range killed.held {
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(next.take([]string{"berth0"}), next.release()); err != nil {
		t.Error(err)
	}
}

// The directory is not used when somebody else may have made what is in it.
func TestClaimDirectoryOfAnother(t *testing.T) {
	for name, prepare := range map[string]func(dir string) error{
		"writable":  func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777)) },
		"of a user": func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 1000, 1000)) },
		"a link":    func(dir string) error { return os.Symlink(filepath.Dir(dir), dir) },
		"a link in it": func(dir string) error {
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			ns, err := os.Readlink("/proc/self/ns/net")
			return errors.Join(err, os.Symlink("/etc/hostname", filepath.Join(dir, ns[len("net:["):len(ns)-1]+"-berth0")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := prepare(claimsIn(t)); err != nil {
				t.Fatal(err)
			}
			var c claims
			if err := c.take([]string{"berth0"}); !errdefs.IsFailedPrecondition(err) && !errors.Is(err, syscall.ELOOP) {
				t.Errorf("err = %v", err)
			}
		})
	}
}
