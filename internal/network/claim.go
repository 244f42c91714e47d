package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// claimDir holds the files of claims. It is root's alone: a lock on a file that
// others can open, or a socket's name, could be taken by any process.
var claimDir = "/run/berth-network"

// claims hold names of the built-in network for this daemon: its bridge and
// its subnets. Two daemons with separate stores would else give one address to
// two pods. A claim is a lock on a file named after the network namespace, to
// which a bridge belongs, and the name. It ends with the process.
type claims struct{ held map[string]*os.File }

// take holds exactly names.
func (c *claims) take(names []string) error {
	next := map[string]*os.File{}
	var errs []error
	for _, name := range names {
		if file, ok := c.held[name]; ok {
			next[name] = file
			continue
		}
		file, err := claim(name)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("%s is used by another daemon on this machine: set network.default_bridge and network.default_subnet to others: %w", name, errdefs.ErrFailedPrecondition)
		}
		if err != nil {
			errs = append(errs, err)
			break
		}
		next[name] = file
	}
	for name, file := range c.held {
		if next[name] != file {
			errs = append(errs, unclaim(file))
		}
	}
	c.held = next
	return errors.Join(errs...)
}

func (c *claims) release() error { return c.take(nil) }

// claim locks the file of a name. EWOULDBLOCK: another daemon has it.
func claim(name string) (*os.File, error) {
	ns, err := os.Readlink("/proc/self/ns/net") // net:[4026531840]
	if err != nil {
		return nil, fmt.Errorf("claim of %s: %w", name, err)
	}
	number := strings.Trim(strings.TrimPrefix(ns, "net:"), "[]")
	path := filepath.Join(claimDir, number+"-"+url.PathEscape(name))
	// The one who gives a claim up removes the file, perhaps just now.
	for range 10 {
		file, err := lockNew(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return file, err
		}
	}
	return nil, fmt.Errorf("claim of %s: %s comes and goes: %w", name, path, errdefs.ErrUnavailable)
}

// lockNew locks the file at path, made when it is not there. ErrNotExist: it
// was removed meanwhile.
func lockNew(path string) (*os.File, error) {
	if err := openClaimDir(); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	var opened, there os.FileInfo
	if err == nil {
		opened, err = file.Stat()
	}
	if err == nil {
		there, err = os.Lstat(path)
	}
	if err == nil && !os.SameFile(opened, there) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
	}
	return file, nil
}

// openClaimDir makes the directory, and refuses one that others can write to.
func openClaimDir() error {
	if err := os.Mkdir(claimDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(claimDir)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 || !ok || stat.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("%s must be a directory of root's that nobody else may use (it is %s): remove it: %w",
			claimDir, info.Mode(), errdefs.ErrFailedPrecondition)
	}
	return nil
}

// unclaim removes the file before it is unlocked, and the directory with the
// last one.
func unclaim(file *os.File) error {
	err := os.Remove(file.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if derr := os.Remove(claimDir); derr != nil && !errors.Is(derr, syscall.ENOTEMPTY) && !errors.Is(derr, fs.ErrNotExist) {
		err = errors.Join(err, derr)
	}
	return errors.Join(err, file.Close())
}
