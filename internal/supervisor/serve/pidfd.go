package serve

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

// errNotReaped says that a process has not ended, or nobody has taken note of
// its end yet.
var errNotReaped = errors.New("the process was not reaped")

// exitInfo asks the kernel how the process of a pidfd ended, which need not be
// a child. Kernels before 6.15 do not know.
func exitInfo(pidfd int) (unix.WaitStatus, error) {
	info := pidInfo{mask: pidInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), uintptr(pidGetInfo), uintptr(unsafe.Pointer(&info)))
	switch {
	case errno == unix.ESRCH:
		return 0, errNotReaped // 6.15 says so while it has not ended
	case errno != 0:
		return 0, fmt.Errorf("PIDFD_GET_INFO: %w", errno)
	case info.mask&pidInfoExit == 0:
		return 0, errNotReaped
	}
	return unix.WaitStatus(info.exitCode), nil
}

// exitCode is a wait status as shells and containerd number it.
func exitCode(ws unix.WaitStatus) uint32 {
	if ws.Signaled() {
		return 128 + uint32(ws.Signal())
	}
	return uint32(ws.ExitStatus())
}

// A procStat is what /proc/PID/stat tells.
type procStat struct {
	state byte
	start uint64 // in clock ticks since the machine started
	// exit is how a zombie ended; the kernel tells it those who may trace the
	// process.
	exit unix.WaitStatus
}

// readStat reads it. The start time with the number names a process for good.
func readStat(pid int) (procStat, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, err
	}
	// The name, field 2, may hold anything.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	const state, start, exit = 3 - 3, 22 - 3, 52 - 3
	if len(fields) <= exit {
		return procStat{}, fmt.Errorf("stat of process %d: too few fields", pid)
	}
	st := procStat{state: fields[state][0]}
	if st.start, err = strconv.ParseUint(string(fields[start]), 10, 64); err != nil {
		return st, err
	}
	code, err := strconv.ParseUint(string(fields[exit]), 10, 32)
	st.exit = unix.WaitStatus(code)
	return st, err
}

// isZombie says that the process has ended and its parent has not taken note.
func (s procStat) isZombie() bool { return s.state == 'Z' || s.state == 'X' }

// endOf is how a process ended that is no child: while it is a zombie from
// /proc, and after that from its pidfd, where there is one (-1: none) and the
// kernel is new enough.
func endOf(pid int, start uint64, pidfd int) (unix.WaitStatus, error) {
	st, err := readStat(pid)
	if err == nil && st.start == start && st.isZombie() {
		return st.exit, nil
	}
	if err == nil && st.start == start {
		return 0, errNotReaped // it runs
	}
	if pidfd < 0 {
		return 0, fmt.Errorf("end of process %d: %w", pid, os.ErrNotExist)
	}
	return exitInfo(pidfd)
}
