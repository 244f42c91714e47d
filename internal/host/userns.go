package host

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// An IDMap is what a user namespace makes of users and groups.
type IDMap struct{ UIDs, GIDs []syscall.SysProcIDMap }

// Root are the numbers on the host of the namespace's root. One without a root
// is ErrInvalidArgument.
func (m *IDMap) Root() (uid, gid int, err error) {
	uid, ok := hostID(m.UIDs, 0)
	if !ok {
		return 0, 0, fmt.Errorf("user namespace: no user on the host is its root: map ID 0: %w", errdefs.ErrInvalidArgument)
	}
	if gid, ok = hostID(m.GIDs, 0); !ok {
		return 0, 0, fmt.Errorf("user namespace: no group on the host is its root's: map ID 0: %w", errdefs.ErrInvalidArgument)
	}
	return uid, gid, nil
}

func hostID(maps []syscall.SysProcIDMap, id int) (int, bool) {
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + id - m.ContainerID, true
		}
	}
	return 0, false
}

// Attributes are what a process needs to be started as root of new namespaces:
// a user namespace, and those of o, which it owns, with those of flags.
func (o NamespaceOptions) Attributes(flags int) *syscall.SysProcAttr {
	for _, kind := range o.kinds() {
		flags |= cloneFlags[kind]
	}
	return &syscall.SysProcAttr{
		Cloneflags:  uintptr(flags),
		UidMappings: o.User.UIDs, GidMappings: o.User.GIDs, GidMappingsEnableSetgroups: true,
	}
}

// pinUserNamespaces is PinNamespaces for a pod with a user namespace. The
// namespaces are owned by it only where they are made in it, and no thread of
// this process can enter it. So they are made with a process, a copy of this
// program that the kernel stops before its first instruction, and that is
// killed when they are pinned.
func pinUserNamespaces(dir string, o NamespaceOptions) error {
	complete, err := allPinned(dir, o.kinds())
	if err != nil || complete {
		return err
	}
	if err := UnpinNamespaces(dir); err != nil { // they would be of another owner
		return err
	}
	return onOwnThread(func() (err error) {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{}
		cmd.SysProcAttr = o.Attributes(0)
		// Its tracer is this thread, which outlives it here; were the thread
		// lost, the process must not go on.
		cmd.SysProcAttr.Ptrace, cmd.SysProcAttr.Pdeathsig = true, unix.SIGKILL
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("namespaces at %s: make a user namespace: %w", dir, explainUserNamespace(err))
		}
		defer func() {
			err = errors.Join(err, cmd.Process.Kill())
			// It ends by the signal, which is no error here.
			if waitErr := cmd.Wait(); waitErr != nil && !errors.As(waitErr, new(*exec.ExitError)) {
				err = errors.Join(err, waitErr)
			}
		}()
		return PinNamespacesOf(cmd.Process.Pid, dir, o)
	})
}

// explainUserNamespace says what to do where the kernel makes none.
func explainUserNamespace(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		return fmt.Errorf("%w: the kernel allows no more of them: raise the sysctl user.max_user_namespaces: %w", err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: the kernel forbids it: look at the sysctls kernel.unprivileged_userns_clone and kernel.yama.ptrace_scope: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}

func allPinned(dir string, kinds []string) (bool, error) {
	for _, kind := range kinds {
		if pinned, err := isPinned(filepath.Join(dir, kind), kind); err != nil || !pinned {
			return false, err
		}
	}
	return true, nil
}

// PinNamespacesOf sets what o asks for in the namespaces of process pid, which
// was started with o.Attributes, and keeps them as dir/user, dir/net and so on.
// After an error UnpinNamespaces takes back what is there.
func PinNamespacesOf(pid int, dir string, o NamespaceOptions) error {
	settings, err := parseSysctls(o)
	if err != nil {
		return fmt.Errorf("namespaces at %s: %w", dir, err)
	}
	proc := filepath.Join("/proc", strconv.Itoa(pid), "ns")
	var others []string
	for _, kind := range o.kinds() {
		if kind != userKind {
			others = append(others, kind)
		}
	}
	err = onOwnThread(func() error {
		for _, kind := range others {
			if err := enter(filepath.Join(proc, kind)); err != nil {
				return err
			}
		}
		if err := o.furnishOwned(others, settings); err != nil {
			return err
		}
		return pinAll(proc, dir, o.kinds())
	})
	if err != nil {
		return fmt.Errorf("namespaces at %s: %w", dir, err)
	}
	return nil
}

func enter(path string) error {
	fd, err := openNamespace(path)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, 0); err != nil {
		return joinError(path, err)
	}
	return nil
}

// furnishOwned is furnish in namespaces that another user namespace owns. The
// settings of an IPC namespace are its root's alone to write, not ours.
func (o NamespaceOptions) furnishOwned(kinds []string, settings []sysctl) error {
	ofIPC := func(s sysctl) bool { return s.kind == ipcKind }
	if err := furnish(kinds, o.Hostname, slices.DeleteFunc(slices.Clone(settings), ofIPC)); err != nil {
		return err
	}
	if !slices.ContainsFunc(settings, ofIPC) {
		return nil
	}
	uid, _, err := o.User.Root()
	if err != nil {
		return err
	}
	return asUser(uid, func() error { return furnish([]string{ipcKind}, "", settings) })
}

// noFixup is SECBIT_NO_SETUID_FIXUP: capabilities stay when the user changes.
const noFixup = 1 << 2

// asUser calls do with another effective user, but all our capabilities. The
// thread must end after it.
func asUser(uid int, do func() error) (err error) {
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noFixup, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if err := setEffective(uid); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, setEffective(0)) }()
	return do()
}

// setEffective is setresuid(-1, uid, -1) for this thread alone; the one of
// package syscall is for all.
func setEffective(uid int) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
		return fmt.Errorf("become user %d: %w", uid, errno)
	}
	return nil
}
