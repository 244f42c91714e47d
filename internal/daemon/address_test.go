package daemon

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"berth/internal/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func claim(t *testing.T, address string) error {
	t.Helper()
	p := &parts{Options: Options{Config: &config.Config{Address: address}}}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	return p.claimAddress(t.Context())
}

// open listens at address; what it returns closes the socket and leaves its
// file.
func open(t *testing.T, address string) (end func() error, remove func() error) {
	t.Helper()
	listener, remove, err := listen(address)
	if err != nil {
		t.Fatal(err)
	}
	return listener.Close, remove
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func refused(t *testing.T, err error, want string) {
	t.Helper()
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
		t.Errorf("err = %v, want one with %q", err, want)
	}
}

func TestAddressOfAnotherDaemon(t *testing.T) {
	address := filepath.Join(t.TempDir(), "s")
	must(t, claim(t, address))
	refused(t, claim(t, address), fmt.Sprintf("process %d, socket %s", os.Getpid(), address))
}

// What serves the path need not be berth, nor of a version that locks it.
func TestAddressThatIsServed(t *testing.T) {
	address := filepath.Join(t.TempDir(), "s")
	other, err := net.Listen("unix", address)
	must(t, err)
	defer other.Close()
	peer := fmt.Sprintf("is served by process %d (", os.Getpid())
	refused(t, claim(t, address), peer)
	_, _, err = listen(address)
	refused(t, err, peer)
	conn, err := net.Dial("unix", address)
	must(t, err)
	must(t, conn.Close())
}

func TestAddressThatIsNoSocket(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	must(t, os.WriteFile(file, []byte("precious"), 0o600))
	must(t, os.Symlink(file, link))
	for _, address := range []string{file, link, dir} {
		refused(t, claim(t, address), "is no socket")
		_, _, err := listen(address)
		refused(t, err, "is no socket")
	}
	if text, err := os.ReadFile(link); string(text) != "precious" || err != nil {
		t.Errorf("the file: %q, %v", text, err)
	}
}

// A killed daemon's socket is replaced.
func TestAddressOfADeadDaemon(t *testing.T) {
	address := filepath.Join(t.TempDir(), "s")
	end, _ := open(t, address)
	must(t, end())
	must(t, claim(t, address))
	end, remove := open(t, address)
	info, err := os.Stat(address)
	must(t, err)
	if info.Mode().Perm() != 0o660 {
		t.Errorf("the socket's mode is %s", info.Mode())
	}
	must(t, end())
	for range 2 {
		must(t, remove())
		if _, err := os.Lstat(address); !os.IsNotExist(err) {
			t.Errorf("the socket stays: %v", err)
		}
	}
}

// A daemon that ends leaves the socket of another that came to its place.
func TestAddressThatWasTakenAway(t *testing.T) {
	address := filepath.Join(t.TempDir(), "s")
	end, remove := open(t, address)
	must(t, os.Rename(address, address+".old"))
	other, err := net.Listen("unix", address)
	must(t, err)
	defer other.Close()
	must(t, end())
	must(t, remove())
	conn, err := net.Dial("unix", address)
	must(t, err)
	must(t, conn.Close())
}
