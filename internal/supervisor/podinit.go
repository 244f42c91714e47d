package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth/internal/host"
	"berth/internal/supervisor/podinit"
)

// oomScoreAdj is what the kubelet's pods have for the process that keeps their
// namespaces.
const oomScoreAdj = "-998"

// startTimeout bounds the start of a pod's init.
const startTimeout = 10 * time.Second

// PodInitOptions describe the init of a PID namespace that a pod shares.
type PodInitOptions struct {
	// Binary is the program containerd-shim-berth-v1; required.
	Binary string
	// ID is the sandbox's. It shows in the process's command line.
	ID string
	// Namespaces are the paths of the pod's pinned namespaces: network, IPC,
	// UTS.
	Namespaces []string
	// Make is set where the pod has a user namespace. No process of ours can
	// enter that, so the init is the first in it: it is started with all of
	// the pod's namespaces, which are pinned beside Pin. Namespaces is not used.
	Make *host.NamespaceOptions
	// Pin is where the PID namespace is pinned; required.
	Pin string
	// Cgroups are the directories of the pod's cgroup, one for each hierarchy.
	Cgroups []string
	// Reaper takes note of its end; required.
	Reaper *Reaper
}

// StartPodInit starts PID 1 of a new PID namespace, and pins the namespace. One
// that runs with that pin is kept. The process survives the daemon; one that
// was not pinned yet does not.
func StartPodInit(ctx context.Context, o PodInitOptions) (host.Process, error) {
	if o.Binary == "" || o.Pin == "" || o.Reaper == nil {
		return host.Process{}, fmt.Errorf("start pod init: Binary, Pin and Reaper are required: %w", errdefs.ErrInvalidArgument)
	}
	p, err := FindPodInit(o.Pin)
	if err == nil || !errdefs.IsNotFound(err) {
		return p, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	p, err = o.start(ctx)
	if err != nil {
		return host.Process{}, fmt.Errorf("start init of pod %s: %w", o.ID, err)
	}
	return p, nil
}

func (o PodInitOptions) start(ctx context.Context) (p host.Process, err error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return p, err
	}
	// If this ends without the byte that says go, the process ends too.
	defer ours.Close()
	cmd, err := o.command(theirs)
	if err == nil {
		err = host.StartIn(o.Namespaces, cmd)
	}
	for _, file := range cmd.ExtraFiles {
		file.Close()
	}
	if err != nil {
		return p, err
	}
	if p, err = host.ProcessOf(cmd.Process.Pid); err != nil { // ours to reap, so it is there
		return p, err
	}
	ended := o.Reaper.watch(cmd, p, "pod-init")
	if err = o.settle(ctx, ours, p); err != nil {
		ours.Close()
		err = errors.Join(err, kill(ctx, p))
		<-ended
	}
	return p, err
}

const ownNamespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNS

// command is what to start, with the socket as descriptor 3. The caller closes
// its files, after an error too.
func (o *PodInitOptions) command(socket *os.File) (*exec.Cmd, error) {
	cmd := exec.Command(o.Binary, podinit.Name, o.ID)
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: ownNamespaces}
	if o.Make != nil {
		// Its root may not pass the directories that the program is in, so
		// it executes what it is given open.
		program, err := os.Open(o.Binary)
		if err != nil {
			return cmd, err
		}
		cmd.Path = "/proc/self/fd/4"
		cmd.ExtraFiles = append(cmd.ExtraFiles, program)
		cmd.SysProcAttr = o.Make.Attributes(ownNamespaces)
		cmd.SysProcAttr.Credential = &syscall.Credential{}
		o.Namespaces = nil
	}
	cmd.SysProcAttr.Setsid = true
	return cmd, nil
}

// settle puts the process in its place, waits until it is ready, pins its
// namespace, and lets it go on.
func (o PodInitOptions) settle(ctx context.Context, ours *os.File, p host.Process) error {
	pid := strconv.Itoa(p.PID)
	for _, dir := range o.Cgroups {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(pid), 0); err != nil {
			return fmt.Errorf("move to cgroup %s: %w", dir, err)
		}
	}
	// Lowering it takes CAP_SYS_RESOURCE, which some machines do not give.
	err := os.WriteFile(filepath.Join("/proc", pid, "oom_score_adj"), []byte(oomScoreAdj), 0)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("set oom_score_adj: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { ours.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := o.hear(ctx, ours, podinit.Ready); err != nil {
		return err
	}
	if o.Make != nil {
		if err := host.PinNamespacesOf(p.PID, filepath.Dir(o.Pin), *o.Make); err != nil {
			return err
		}
	}
	if err := host.PinPID(o.Pin, p.PID); err != nil {
		return err
	}
	if _, err := ours.Write([]byte{1}); err != nil {
		return fmt.Errorf("%s ended when it was ready: %w", o.Binary, err)
	}
	if err := o.hear(ctx, ours, ""); err != nil {
		return err
	}
	if !p.Alive() {
		return fmt.Errorf("%s ended when it was to run: %w", o.Binary, errdefs.ErrUnavailable)
	}
	return nil
}

// hear takes what the process says; "" is the end of the socket. Anything but
// want is an error.
func (o PodInitOptions) hear(ctx context.Context, ours *os.File, want string) error {
	said := make([]byte, 1024)
	n, err := ours.Read(said)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && err != io.EOF:
		return fmt.Errorf("hear of %s: %w", o.Binary, err)
	case string(said[:n]) == want:
		return nil
	case n == 0:
		return fmt.Errorf("%s ended before it was ready: %w", o.Binary, errdefs.ErrUnavailable)
	}
	return errors.New(strings.TrimSpace(string(said[:n])))
}

// socketPair returns a socket of ours, which the runtime polls, and one for a
// child.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	err = unix.SetNonblock(fds[0], true)
	return os.NewFile(uintptr(fds[0]), "pod-init"), os.NewFile(uintptr(fds[1]), "pod-init"), err
}

// FindPodInit returns the process that is PID 1 of the namespace pinned at
// pin. ErrNotFound: nothing is pinned there, or it has ended.
func FindPodInit(pin string) (host.Process, error) {
	var st unix.Stat_t
	err := unix.Stat(pin, &st)
	var fs unix.Statfs_t
	if err == nil {
		err = unix.Statfs(pin, &fs)
	}
	switch {
	case errors.Is(err, unix.ENOENT) || err == nil && fs.Type != unix.NSFS_MAGIC:
		return host.Process{}, fmt.Errorf("PID namespace %s is not pinned: %w", pin, errdefs.ErrNotFound)
	case err != nil:
		return host.Process{}, fmt.Errorf("look at PID namespace %s: %w", pin, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return host.Process{}, fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if !isInit(pid, &st) {
			continue
		}
		// A number given away in between is another namespace's.
		if p, err := host.ProcessOf(pid); err == nil && isInit(pid, &st) && p.Alive() {
			return p, nil
		}
	}
	return host.Process{}, fmt.Errorf("the init of PID namespace %s has ended: %w", pin, errdefs.ErrNotFound)
}

// isInit tells whether the process is the first one of the namespace.
func isInit(pid int, ns *unix.Stat_t) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	var st unix.Stat_t
	if unix.Stat(dir+"/ns/pid", &st) != nil || st.Ino != ns.Ino || st.Dev != ns.Dev {
		return false
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			fields := strings.Fields(rest)
			return len(fields) > 1 && fields[len(fields)-1] == "1"
		}
	}
	return false
}

// StopPodInit ends the init of the namespace pinned at pin, and with it every
// process of the namespace, and waits for that: it takes until the parents of
// those processes, the shims, have reaped them. It is idempotent; the pin
// stays.
func StopPodInit(ctx context.Context, pin string) error {
	p, err := FindPodInit(pin)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil {
		err = kill(ctx, p)
	}
	if err != nil {
		return fmt.Errorf("stop the init of PID namespace %s: %w", pin, err)
	}
	return nil
}

// kill ends a process for sure and waits for it.
func kill(ctx context.Context, p host.Process) error {
	if err := p.Signal(unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return p.Wait(ctx)
}
