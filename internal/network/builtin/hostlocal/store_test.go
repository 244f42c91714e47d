package hostlocal

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Whoever looks at an address sees its owner: there is no moment in which a
// kill would leave one that is nobody's.
func TestReservedWithItsOwner(t *testing.T) {
	var p Plugin
	dir := t.TempDir()
	s, err := p.open(t.Context(), "net", dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(s.Unlock(), s.Close()); err != nil {
			t.Error(err)
		}
	}()
	if err := s.Lock(); err != nil {
		t.Fatal(err)
	}
	const addresses = 2000
	address := func(i int) net.IP { return net.IPv4(10, 0, byte(i>>8), byte(i)) }
	var at atomic.Int64
	watched := make(chan error, 1)
	go func() {
		fd, err := unix.Open(filepath.Join(dir, "net"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		buf := make([]byte, maxOwner)
		for i := at.Load(); err == nil && i < addresses; i = at.Load() {
			n, rerr := readAt(fd, address(int(i)).String(), buf)
			if rerr == nil && n == 0 {
				err = fmt.Errorf("%s has no owner", address(int(i)))
			}
		}
		watched <- errors.Join(err, unix.Close(fd))
	}()
	for i := range addresses {
		if ok, err := s.Reserve("c", "eth0", address(i), "0"); !ok || err != nil {
			t.Errorf("%s: %v, %v", address(i), ok, err)
		}
		at.Store(int64(i + 1))
	}
	if err := <-watched; err != nil {
		t.Error(err)
	}
	if ok, err := s.Reserve("d", "eth0", address(7), "0"); ok || err != nil {
		t.Errorf("taken: %v, %v", ok, err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "net", "10.0.0.7")); err != nil || string(text) != "c\r\neth0" {
		t.Errorf("its file: %q, %v", text, err)
	}
	if last, err := s.LastReservedIP("0"); err != nil || !last.Equal(address(addresses-1)) {
		t.Errorf("last: %v, %v", last, err)
	}
}
