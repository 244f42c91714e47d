package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The kinds of namespaces a pod may have, which are also the names of their
// files.
const (
	netKind = "net"
	ipcKind = "ipc"
	utsKind = "uts"
	pidKind = "pid"

	userKind = "user"
)

var cloneFlags = map[string]int{
	netKind: unix.CLONE_NEWNET, ipcKind: unix.CLONE_NEWIPC, utsKind: unix.CLONE_NEWUTS, pidKind: unix.CLONE_NEWPID, userKind: unix.CLONE_NEWUSER,
}

// NamespaceOptions say which namespaces of its own a pod has and what is set
// in them.
type NamespaceOptions struct {
	Net, IPC, UTS bool
	// User maps the IDs of a user namespace that owns the others; nil is none.
	User *IDMap
	// Hostname is set where UTS is; empty leaves a copy of the host's.
	Hostname string
	// Sysctls by name, "net.ipv4.ip_forward" or "net/ipv4/ip_forward". Each
	// must belong to one of the namespaces asked for.
	Sysctls map[string]string
}

func (o NamespaceOptions) kinds() []string {
	var kinds []string
	for _, k := range []struct {
		wanted bool
		kind   string
	}{{o.User != nil, userKind}, {o.Net, netKind}, {o.IPC, ipcKind}, {o.UTS, utsKind}} {
		if k.wanted {
			kinds = append(kinds, k.kind)
		}
	}
	return kinds
}

// PinNamespaces makes the namespaces of a pod and keeps them, without a
// process, as dir/net, dir/ipc, dir/uts and dir/user. In a new network namespace
// the loopback device is up. A namespace is mounted only once all is set in it, so
// one that is found mounted is complete and kept as it is; the others are
// made. A bad sysctl or hostname is ErrInvalidArgument, with nothing left
// behind.
//
// Sysctls of a network interface ("net.ipv4.conf.eth0.…") are checked by name
// only: the interface does not exist yet. SetLinkSysctls sets them.
func PinNamespaces(dir string, o NamespaceOptions) error {
	settings, err := parseSysctls(o)
	if err != nil {
		return fmt.Errorf("namespaces at %s: %w", dir, err)
	}
	if o.User != nil {
		return pinUserNamespaces(dir, o)
	}
	var missing []string
	flags := 0
	for _, kind := range o.kinds() {
		pinned, err := isPinned(filepath.Join(dir, kind), kind)
		if err != nil {
			return err
		}
		if !pinned {
			missing = append(missing, kind)
			flags |= cloneFlags[kind]
		}
	}
	if len(missing) == 0 {
		return nil
	}
	err = onOwnThread(func() error {
		if err := unix.Unshare(flags); err != nil {
			return fmt.Errorf("make namespaces %s: %w", strings.Join(missing, ", "), err)
		}
		if err := furnish(missing, o.Hostname, settings); err != nil {
			return err
		}
		return pinAll("/proc/thread-self/ns", dir, missing)
	})
	if err != nil {
		return fmt.Errorf("namespaces at %s: %w", dir, err)
	}
	return nil
}

// pinAll keeps the namespaces of the kinds, found in a directory of /proc, in dir.
func pinAll(proc, dir string, kinds []string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, kind := range kinds {
		if err := pin(filepath.Join(proc, kind), filepath.Join(dir, kind)); err != nil {
			return err
		}
	}
	return nil
}

// furnish sets what is wanted in the new namespaces of this thread.
func furnish(kinds []string, hostname string, settings []sysctl) error {
	for _, kind := range kinds {
		if kind == utsKind && hostname != "" {
			if err := unix.Sethostname([]byte(hostname)); err != nil {
				if errors.Is(err, unix.EINVAL) {
					return fmt.Errorf("hostname %q: the kernel takes at most 64 bytes: %w", hostname, errdefs.ErrInvalidArgument)
				}
				return fmt.Errorf("set hostname %q: %w", hostname, err)
			}
		}
		for _, s := range settings {
			if s.kind == kind && !s.ofLink() {
				if err := s.write(); err != nil {
					return err
				}
			}
		}
		if kind == netKind { // after the sysctls, which may turn IPv6 off or on
			if err := loopbackUp(); err != nil {
				return fmt.Errorf("set the loopback device up: %w", err)
			}
		}
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return err
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// pin mounts a namespace, given by its file in /proc, onto path.
func pin(namespace, path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	unix.Close(fd)
	if err := unix.Mount(namespace, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount namespace %s at %s: %w", namespace, path, err)
	}
	return nil
}

// isPinned tells whether path is a mounted namespace of the kind.
func isPinned(path, kind string) (bool, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at pinned namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false, fmt.Errorf("look at pinned namespace %s: %w", path, err)
	}
	if st.Type != unix.NSFS_MAGIC {
		return false, nil
	}
	flag, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil {
		return false, fmt.Errorf("kind of pinned namespace %s: %w", path, err)
	}
	if flag != cloneFlags[kind] {
		return false, fmt.Errorf("pinned namespace %s is of another kind (flag %#x): remove it and try again: %w", path, flag, errdefs.ErrFailedPrecondition)
	}
	return true, nil
}

// PinPID keeps the PID namespace of process pid as path. A pin of that
// namespace is kept, a pin of another one is replaced: its init is gone, and
// nothing could join it.
func PinPID(path string, pid int) error {
	source := fmt.Sprintf("/proc/%d/ns/pid", pid)
	want, err := os.Stat(source)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pin the PID namespace of process %d: no such process: %w", pid, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("pin the PID namespace of process %d: %w", pid, err)
	}
	if have, err := os.Lstat(path); err == nil && os.SameFile(want, have) {
		return nil
	}
	if err := Unmount(path); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("pin the PID namespace of process %d: %w", pid, err)
	}
	if err := pin(source, path); err != nil {
		return fmt.Errorf("pin the PID namespace of process %d: %w", pid, err)
	}
	return nil
}

// UnpinNamespaces unmounts and removes every file in dir, then dir. It goes on
// after a failure and reports them all.
func UnpinNamespaces(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unpin namespaces: %w", err)
	}
	var failed []error
	for _, e := range entries {
		if err := unpin(filepath.Join(dir, e.Name())); err != nil {
			failed = append(failed, err)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("unpin namespaces: %w", errors.Join(failed...))
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unpin namespaces: remove %s: %w", dir, err)
	}
	return nil
}

func unpin(path string) error {
	if err := Unmount(path); err != nil {
		return err
	}
	switch err := unix.Unlink(path); {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("remove %s: it is mounted a second time in this mount namespace, at a path that /proc/self/mountinfo shows; unmount that: %w", path, errdefs.ErrFailedPrecondition)
	default:
		return fmt.Errorf("remove %s: %w", path, err)
	}
}
