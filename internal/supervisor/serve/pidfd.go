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

// startTime is when the process started, in clock ticks since the machine did,
// and its state. With the number it names the process for good.
func startTime(pid int) (start uint64, state byte, err error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	// The name, field 2, may hold anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const afterName = 22 - 3
	if len(fields) <= afterName {
		return 0, 0, fmt.Errorf("stat of process %d: too few fields", pid)
	}
	start, err = strconv.ParseUint(string(fields[afterName]), 10, 64)
	return start, fields[0][0], err
}
