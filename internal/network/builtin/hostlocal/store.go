package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"
	"golang.org/x/sys/unix"
)

// defaultDir is where the reference keeps addresses unless told otherwise.
const defaultDir = "/var/lib/cni/networks"

// lastReserved is the reference's prefix of the file that names the last address
// given out of a range.
const lastReserved = "last_reserved_ip."

// maxOwner is more than the ID of a container and the name of an interface.
const maxOwner = 1024

// lockDelay is between two tries for a lock file that another process holds.
const lockDelay = 2 * time.Millisecond

// locks has one place for each store, so that calls of this process do not
// compete for the lock file.
type locks struct {
	mu sync.Mutex // guards of
	of map[string]chan struct{}
}

func (l *locks) get(dir string) chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of = map[string]chan struct{}{}
	}
	if l.of[dir] == nil {
		l.of[dir] = make(chan struct{}, 1)
	}
	return l.of[dir]
}

// store is the reference's store with a lock that does not outlast a context.
// It belongs to one call. The allocator ignores an error of Lock; so what
// changes the store asks for the lock.
type store struct {
	*disk.Store
	ctx    context.Context // of the call, which the allocator's interface has no place for
	dir    string
	turn   chan struct{}
	file   *os.File
	locked bool
	err    error // of Lock
	// held is what the container holds, once it was looked for. Only this call
	// gives it more.
	held map[string][]net.IP
}

var _ backend.Store = (*store)(nil)

func (p *Plugin) open(ctx context.Context, network, dataDir string) (*store, error) {
	if dataDir == "" {
		dataDir = defaultDir
	}
	s, err := disk.New(network, dataDir)
	if err != nil {
		return nil, fmt.Errorf("store of addresses %s: %w", filepath.Join(dataDir, network), err)
	}
	dir := filepath.Join(dataDir, network)
	file, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &store{Store: s, ctx: ctx, dir: dir, turn: p.locks.get(dir), file: file, held: map[string][]net.IP{}}, nil
}

// Close closes the store, which must not be locked.
func (s *store) Close() error { return errors.Join(s.file.Close(), s.Store.Close()) }

// Lock takes the store, or tells with the operation after it that it could not.
func (s *store) Lock() error {
	select {
	case s.turn <- struct{}{}:
	case <-s.ctx.Done():
		s.err = s.lockError(s.ctx.Err())
		return s.err
	}
	for {
		err := unix.Flock(int(s.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			s.locked, s.err = true, nil
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			s.err = s.lockError(err)
		}
		select {
		case <-time.After(lockDelay):
		case <-s.ctx.Done():
			s.err = s.lockError(s.ctx.Err())
		}
		if s.err != nil {
			<-s.turn
			return s.err
		}
	}
}

func (s *store) lockError(err error) error {
	return fmt.Errorf("lock of the store of addresses %s (does another process hold it?): %w: %w", s.dir, err, errdefs.ErrUnavailable)
}

// Unlock gives the store back.
func (s *store) Unlock() error {
	if !s.locked {
		return nil
	}
	s.locked = false
	err := unix.Flock(int(s.file.Fd()), unix.LOCK_UN)
	<-s.turn
	return err
}

// Reserve takes an address unless it is taken. Unlike with the reference its
// file has its owner from the first moment: one that a killed process left
// without would be nobody's to give back.
func (s *store) Reserve(id, ifname string, ip net.IP, rangeID string) (bool, error) {
	if !s.locked {
		return false, s.err
	}
	err := putFile(s.dir, ip.String(), owner(id, ifname))
	switch {
	case errors.Is(err, unix.EEXIST):
		return false, nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOENT):
		// No files without a name here, or no /proc.
		return s.Store.Reserve(id, ifname, ip, rangeID)
	case err != nil:
		return false, fmt.Errorf("reserve %s in %s: %w", ip, s.dir, err)
	}
	return true, os.WriteFile(filepath.Join(s.dir, lastReserved+rangeID), []byte(ip.String()), 0o600)
}

// putFile makes a file with its text, or none.
func putFile(dir, name, text string) (err error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), filepath.Join(dir, name))
	defer func() { err = errors.Join(err, file.Close()) }()
	if _, err := file.WriteString(text); err != nil {
		return err
	}
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, file.Name(), unix.AT_SYMLINK_FOLLOW)
}

// ReleaseByID gives back what a container holds on an interface. A file that
// could not be removed is an error, unlike with the reference.
func (s *store) ReleaseByID(id, ifname string) error {
	if !s.locked {
		return s.err
	}
	mine := owner(id, ifname)
	found, err := s.releaseWhere(func(text string) bool { return text == mine })
	if err != nil || found {
		return err
	}
	// Versions before 0.7 wrote no interface.
	_, err = s.releaseWhere(func(text string) bool { return text == strings.TrimSpace(id) })
	return err
}

// GetByID lists what a container holds.
func (s *store) GetByID(id, ifname string) []net.IP {
	mine, old := owner(id, ifname), strings.TrimSpace(id)
	ips, known := s.held[mine]
	if known {
		return ips
	}
	// An error leads to an address more, never to one that is taken.
	_ = s.each(func(file, text string) error {
		if text == mine || text == old {
			ips = append(ips, net.ParseIP(filepath.Base(file)))
		}
		return nil
	})
	s.held[mine] = ips
	return ips
}

// releaseAllBut gives back what none of the attachments holds.
func (s *store) releaseAllBut(valid []types.GCAttachment) error {
	keep := map[string]bool{"": true} // one that is being written has no owner yet
	for _, a := range valid {
		keep[owner(a.ContainerID, a.IfName)] = true
		keep[strings.TrimSpace(a.ContainerID)] = true
	}
	_, err := s.releaseWhere(func(text string) bool { return !keep[text] })
	return err
}

// owner is what the file of an address holds.
func owner(id, ifname string) string { return strings.TrimSpace(id) + disk.LineBreak + ifname }

func (s *store) releaseWhere(gone func(text string) bool) (found bool, err error) {
	err = s.each(func(file, text string) error {
		if !gone(text) {
			return nil
		}
		found = true
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	})
	return found, err
}

// each calls fn for every address that is taken. There are as many files as
// there are pods, so each costs three system calls and no more.
func (s *store) each(fn func(file, text string) error) error {
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	var buf [maxOwner]byte
	for _, name := range names {
		if _, perr := netip.ParseAddr(name); err != nil || perr != nil {
			continue // the lock, the last address
		}
		var n int
		n, err = readAt(int(dir.Fd()), name, buf[:])
		if errors.Is(err, unix.ENOENT) {
			err = nil
			continue
		}
		if err == nil {
			err = fn(filepath.Join(s.dir, name), strings.TrimSpace(string(buf[:n])))
		}
	}
	return errors.Join(err, dir.Close())
}

// readAt reads the beginning of a small file of a directory.
func readAt(dir int, name string, buf []byte) (n int, err error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", name, err)
	}
	for {
		n, err = unix.Read(fd, buf)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return max(n, 0), errors.Join(err, unix.Close(fd))
}
