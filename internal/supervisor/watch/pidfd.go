package watch

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A pidInfo is struct pidfd_info as of Linux 6.15.
type pidInfo struct {
	mask     uint64
	cgroup   uint64
	pids     [3]uint32
	ids      [8]uint32
	exitCode int32
}

const (
	pidInfoExit = 1 << 3
	// pidGetInfo is PIDFD_GET_INFO: _IOWR(0xFF, 11, struct pidfd_info).
	pidGetInfo = 3<<30 | unsafe.Sizeof(pidInfo{})<<16 | 0xFF<<8 | 11
)

// ErrNotReaped says that a process has not ended, or nobody has taken note of
// its end yet.
var ErrNotReaped = errors.New("the process was not reaped")

// exitInfo asks the kernel how the process of a pidfd ended, which need not be
// a child. Kernels before 6.15 do not know.
func exitInfo(pidfd int) (unix.WaitStatus, error) {
	info := pidInfo{mask: pidInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), uintptr(pidGetInfo), uintptr(unsafe.Pointer(&info)))
	switch {
	case errno == unix.ESRCH:
		return 0, ErrNotReaped // 6.15 says so while it has not ended
	case errno != 0:
		return 0, fmt.Errorf("PIDFD_GET_INFO: %w", errno)
	case info.mask&pidInfoExit == 0:
		return 0, ErrNotReaped
	}
	return unix.WaitStatus(info.exitCode), nil
}

// ExitCode is a wait status as shells and containerd number it.
func ExitCode(ws unix.WaitStatus) uint32 {
	if ws.Signaled() {
		return 128 + uint32(ws.Signal())
	}
	return uint32(ws.ExitStatus())
}

// A Stat is what /proc/PID/stat tells.
type Stat struct {
	State byte
	Start uint64 // in clock ticks since the machine started
	// Exit is how a zombie ended; the kernel tells it those who may trace the
	// process.
	Exit unix.WaitStatus
}

// ReadStat reads it. The start time with the number names a process for good.
func ReadStat(pid int) (Stat, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Stat{}, err
	}
	// The name, field 2, may hold anything.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	const first = 3 // as proc(5) counts them
	const start, exit = 22 - first, 52 - first
	if len(fields) <= exit {
		return Stat{}, fmt.Errorf("stat of process %d: too few fields", pid)
	}
	st := Stat{State: fields[0][0]}
	if st.Start, err = strconv.ParseUint(string(fields[start]), 10, 64); err != nil {
		return st, err
	}
	code, err := strconv.ParseUint(string(fields[exit]), 10, 32)
	st.Exit = unix.WaitStatus(code)
	return st, err
}

// IsZombie says that the process has ended and its parent has not taken note.
func (s Stat) IsZombie() bool { return s.State == 'Z' || s.State == 'X' }

// EndOf is how a process ended that is no child: while it is a zombie from
// /proc, and after that from its pidfd, where there is one (-1: none) and the
// kernel is new enough.
func EndOf(pid int, start uint64, pidfd int) (unix.WaitStatus, error) {
	st, err := ReadStat(pid)
	if err == nil && st.Start == start && st.IsZombie() {
		return st.Exit, nil
	}
	if err == nil && st.Start == start {
		return 0, ErrNotReaped // it runs
	}
	if pidfd < 0 {
		return 0, fmt.Errorf("end of process %d: %w", pid, os.ErrNotExist)
	}
	return exitInfo(pidfd)
}
