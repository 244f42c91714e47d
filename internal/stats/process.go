package stats

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxLooked bounds how many open files of a container are looked at to find the
// sockets among them.
const maxLooked = 4096

// An inventory counts the open files of processes, and the sockets among them.
type inventory struct {
	files, sockets uint64
	looked         int
	names          [8 << 10]byte
}

var inventories = sync.Pool{New: func() any { return new(inventory) }}

func (i *inventory) reset() { i.files, i.sockets, i.looked = 0, 0, 0 }

// complete tells whether all files were looked at, so that sockets is right.
func (i *inventory) complete() bool { return i.looked <= maxLooked }

// add counts the files of one process; one that has ended has none.
func (i *inventory) add(pid []byte) {
	dir, err := unix.Open("/proc/"+string(pid)+"/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(dir) // of a directory that was only read
	for {
		n, err := unix.Getdents(dir, i.names[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		more := n > len(i.names)-direntMost
		for entries := i.names[:n]; len(entries) > direntName; {
			size := int(binary.NativeEndian.Uint16(entries[direntSize:]))
			if size <= direntName || size > len(entries) {
				return
			}
			i.one(dir, entries[direntName:size])
			entries = entries[size:]
		}
		if !more {
			return
		}
	}
}

// Offsets in struct linux_dirent64.
const (
	direntSize = unsafe.Offsetof(unix.Dirent{}.Reclen)
	direntName = int(unsafe.Offsetof(unix.Dirent{}.Name))
	direntMost = 64 // of an entry whose name is a number: as long as another one fits, the kernel gives it
)

// one counts the file that a directory entry names; name ends with a zero.
func (i *inventory) one(dir int, name []byte) {
	if name[0] == '.' {
		return
	}
	i.files++
	if i.looked++; i.looked > maxLooked {
		return
	}
	// Its name says what it is. Its status might have to come from a server.
	const socket = "socket:"
	var target [len(socket)]byte
	end := max(0, bytes.IndexByte(name, 0))
	if n, err := unix.Readlinkat(dir, string(name[:end]), target[:]); err == nil && string(target[:n]) == socket {
		i.sockets++
	}
}

// openFilesLimit is the soft limit of the process's open files; ok is false
// where there is none or the process has ended.
func openFilesLimit(pid []byte) (limit uint64, ok bool) {
	var l unix.Rlimit
	n, err := strconv.Atoi(string(pid))
	if err != nil {
		return 0, false
	}
	if unix.Prlimit(n, unix.RLIMIT_NOFILE, nil, &l) == nil {
		return l.Cur, l.Cur != unix.RLIM_INFINITY
	}
	return limitFromProc(pid)
}

// limitFromProc is for processes whose limits the kernel does not give: those of
// other users, without CAP_SYS_RESOURCE. All may read /proc/PID/limits.
func limitFromProc(pid []byte) (limit uint64, ok bool) {
	b := borrow()
	defer b.giveBack()
	data, err := b.read("/proc/" + string(pid) + "/limits")
	if err != nil {
		return 0, false
	}
	_, rest, found := bytes.Cut(data, []byte("Max open files"))
	if !found {
		return 0, false
	}
	rest = bytes.TrimLeft(rest, " ")
	limit, err = parseUint(rest[:max(0, bytes.IndexByte(rest, ' '))])
	return limit, err == nil // "unlimited" is none
}
