package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A Process names one process for good: its number may be given to another
// one, but never together with its start time. It may be written down and used
// by another daemon until the machine restarts.
type Process struct {
	PID int `json:"pid"`
	// Start is in clock ticks since the machine started.
	Start uint64 `json:"start"`
}

// ProcessOf returns the process that has the number now. ErrNotFound: none.
func ProcessOf(pid int) (Process, error) {
	if pid <= 0 {
		return Process{}, fmt.Errorf("process %d: %w", pid, errdefs.ErrNotFound)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if gone(err) {
		return Process{}, fmt.Errorf("process %d: %w", pid, errdefs.ErrNotFound)
	}
	if err != nil {
		return Process{}, fmt.Errorf("process %d: %w", pid, err)
	}
	start, err := startTime(string(stat))
	if err != nil {
		return Process{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return Process{PID: pid, Start: start}, nil
}

// startTime is field 22 of /proc/PID/stat.
func startTime(stat string) (uint64, error) { return statField(stat, 22) }

// statField is a field of /proc/PID/stat after the second, the name, which may
// hold anything, parentheses and spaces too.
func statField(stat string, number int) (uint64, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) <= number-3 {
		return 0, fmt.Errorf("stat %q: too few fields", stat)
	}
	value, err := strconv.ParseUint(fields[number-3], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("stat: field %d: %w", number, err)
	}
	return value, nil
}

// open returns a pidfd of the process, in non-blocking mode. ErrNotFound: it
// is gone.
func (p Process) open() (int, error) {
	gone := fmt.Errorf("process %d: %w", p.PID, errdefs.ErrNotFound)
	if p.PID <= 0 {
		return -1, gone
	}
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return -1, gone
	}
	if err != nil {
		return -1, fmt.Errorf("process %d: pidfd_open: %w", p.PID, err)
	}
	// Were the number given away before the pidfd was opened, the start time
	// now would be another.
	now, err := ProcessOf(p.PID)
	if err == nil && now != p {
		err = gone
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Alive tells whether the process runs. One that has ended is not alive, even
// while its parent has not taken note.
func (p Process) Alive() bool {
	fd, err := p.open()
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return !ended(fd)
}

// Ending tells whether the process has run for the last time: it has ended, was
// sent SIGKILL, or waits in the kernel for its threads or for the rest of its
// PID namespace. Its namespaces may not be there to enter any more.
func (p Process) Ending() bool {
	if !p.Alive() {
		return true
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return gone(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		return gone(err)
	}
	return exiting(string(stat)) || killed(string(status))
}

func gone(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// exiting tells of the flag PF_EXITING in /proc/PID/stat.
func exiting(stat string) bool {
	flags, err := statField(stat, 9)
	return err == nil && flags&0x4 != 0
}

// killed tells of a pending SIGKILL in /proc/PID/status.
func killed(status string) bool {
	for line := range strings.Lines(status) {
		name, mask, _ := strings.Cut(line, ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		pending, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
		if err == nil && pending&(1<<(unix.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}

// ended tells whether the process of a pidfd has ended.
func ended(fd int) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n == 1
		}
	}
}

// Signal sends a signal. ErrNotFound: the process is gone.
func (p Process) Signal(sig syscall.Signal) error {
	fd, err := p.open()
	if err != nil {
		return fmt.Errorf("signal %v: %w", sig, err)
	}
	defer unix.Close(fd)
	err = unix.PidfdSendSignal(fd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		err = errdefs.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("signal %v: process %d: %w", sig, p.PID, err)
	}
	return nil
}

// Wait returns nil once the process has ended, whoever its parent is, or the
// context's error. It leaves the exit status to the parent.
func (p Process) Wait(ctx context.Context) error {
	fd, err := p.open()
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	f := os.NewFile(uintptr(fd), "pidfd") // non-blocking: the runtime polls it
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", p.PID, err)
	}
	defer context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })()
	err = conn.Read(func(fd uintptr) bool { return ended(int(fd)) })
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", p.PID, err)
	}
	return nil
}

// FindProcesses returns the processes whose command line matches, in the order
// of their numbers. Kernel threads and processes that have ended have none.
//
// Reading a command line or an environment waits for the lock of the process's
// memory, which the process itself may hold for ever. So only processes for
// which every where answers true are read; a where answers without waiting.
func FindProcesses(match func(cmdline []string) bool, where ...func(pid int) bool) ([]Process, error) {
	return findProcesses("cmdline", match, where)
}

// ProcessesWithEnv returns the processes that were started with key=value in
// their environment; where is that of FindProcesses.
func ProcessesWithEnv(key, value string, where ...func(pid int) bool) ([]Process, error) {
	entry := key + "=" + value
	return findProcesses("environ", func(environ []string) bool { return slices.Contains(environ, entry) }, where)
}

// InOurNamespaces is for FindProcesses: the processes in this one's PID and
// mount namespaces. A container is in others whatever it says of itself, except
// that it may share the PID namespace.
func InOurNamespaces() (func(pid int) bool, error) {
	kinds := []string{"pid", "mnt"}
	var ours []string
	for _, kind := range kinds {
		ns, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			return nil, fmt.Errorf("own namespaces: %w", err)
		}
		ours = append(ours, ns)
	}
	return func(pid int) bool {
		for i, kind := range kinds {
			if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err != nil || ns != ours[i] {
				return false
			}
		}
		return true
	}, nil
}

// findProcesses matches a file in /proc/PID that holds strings ended by zeros.
func findProcesses(file string, match func([]string) bool, where []func(int) bool) ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || slices.ContainsFunc(where, func(is func(int) bool) bool { return !is(pid) }) {
			continue
		}
		before, err := ProcessOf(pid)
		if err != nil {
			continue // ended meanwhile
		}
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		if err != nil || len(data) == 0 {
			continue
		}
		words := strings.Split(string(bytes.TrimSuffix(data, []byte{0})), "\x00")
		if !match(words) {
			continue
		}
		if after, err := ProcessOf(pid); err == nil && after == before {
			found = append(found, before)
		}
	}
	return found, nil
}
