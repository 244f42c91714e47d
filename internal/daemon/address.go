package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// dialTimeout bounds the question whether somebody serves a socket.
const dialTimeout = time.Second

// claimAddress takes the socket's path for this daemon until it ends. The lock
// keeps two daemons from it, whatever their directories; what else listens
// there, or is no socket, is left alone.
func (p *parts) claimAddress(context.Context) error {
	address := p.Config.Address
	file, err := lock("address "+address, address+".lock", address)
	if err != nil {
		return err
	}
	p.later(file.Close)
	_, err = abandoned(address)
	return err
}

// abandoned tells whether there is a socket at the path that nobody listens
// on. ErrFailedPrecondition: the path is not to be taken.
func abandoned(path string) (bool, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return false, fmt.Errorf("address %s is no socket (%s) and is left alone; remove it, or name another address: %w",
			path, info.Mode(), errdefs.ErrFailedPrecondition)
	}
	conn, err := net.DialTimeout("unix", path, dialTimeout)
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return true, nil
	case errors.Is(err, fs.ErrNotExist): // gone meanwhile
		return false, nil
	case err != nil:
		return false, fmt.Errorf("address %s: cannot tell whether somebody serves it; remove the socket if nobody does: %w: %w",
			path, err, errdefs.ErrFailedPrecondition)
	}
	return false, errors.Join(fmt.Errorf("address %s is served by %s; stop it, or give this daemon an address of its own (--address): %w",
		path, peerOf(conn), errdefs.ErrFailedPrecondition), conn.Close())
}

// peerOf names the process that listens at the other end, for a message.
func peerOf(conn net.Conn) string {
	unknown := "another process"
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return unknown
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if cerr != nil || err != nil {
		return unknown
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cred.Pid))
	if err != nil {
		return fmt.Sprintf("process %d", cred.Pid)
	}
	return fmt.Sprintf("process %d (%s)", cred.Pid, strings.TrimSpace(string(name)))
}

// listen opens the socket, whose path claimAddress has taken. remove takes the
// socket away once it is closed, unless another one has come to its place.
func listen(address string) (listener net.Listener, remove func() error, err error) {
	stale, err := abandoned(address)
	if err != nil {
		return nil, nil, err
	}
	if stale {
		if err := os.Remove(address); err != nil {
			return nil, nil, err
		}
	}
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		return nil, nil, fmt.Errorf("address in %s: %w", filepath.Dir(address), err)
	}
	socket.SetUnlinkOnClose(false)
	err = os.Chmod(address, 0o660)
	var ours os.FileInfo
	if err == nil {
		ours, err = os.Lstat(address)
	}
	if err != nil {
		return nil, nil, errors.Join(err, socket.Close(), os.Remove(address))
	}
	return socket, func() error { return removeSame(address, ours) }, nil
}

// removeSame removes the file at the path if it is still this one.
func removeSame(path string, file os.FileInfo) error {
	now, err := os.Lstat(path)
	if err == nil && os.SameFile(now, file) {
		err = os.Remove(path)
	}
	if errors.Is(err, syscall.ENOENT) {
		err = nil
	}
	return err
}
