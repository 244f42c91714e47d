package serve

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/containerd/api/events"
	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// An oomWatch is told when a container's cgroup lacks memory.
type oomWatch struct {
	c     *container
	path  string // the file that counts
	fd    int    // polled
	token int32
	v2    bool

	mu     sync.Mutex // guards what follows
	kills  uint64
	closed bool
}

// watchOOM starts to watch; nil where the machine has no memory controller.
func (s *Server) watchOOM(c *container) *oomWatch {
	w, err := s.openOOM(c)
	if err != nil {
		s.Log.Debug("lack of memory is not watched", "container", c.id, "err", err)
		return nil
	}
	return w
}

func (s *Server) openOOM(c *container) (*oomWatch, error) {
	state, err := c.lib.State()
	if err != nil {
		return nil, err
	}
	w := &oomWatch{c: c, v2: cgroups.IsCgroup2UnifiedMode()}
	events := uint32(unix.EPOLLPRI)
	if w.v2 {
		w.path = filepath.Join(state.CgroupPaths[""], "memory.events")
		w.fd, err = unix.Open(w.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		w.kills, _ = oomKills(w.path) // 0 is right for a new cgroup
	} else {
		dir := state.CgroupPaths["memory"]
		if dir == "" {
			return nil, fmt.Errorf("no memory controller")
		}
		w.path, events = filepath.Join(dir, "memory.oom_control"), unix.EPOLLIN
		w.fd, err = oomEventFD(dir, w.path)
	}
	if err != nil {
		return nil, err
	}
	if w.token, err = s.poll.Add(w.fd, events, w.happened); err != nil {
		unix.Close(w.fd)
		return nil, err
	}
	return w, nil
}

// oomEventFD has the kernel count up an eventfd when the cgroup lacks memory.
func oomEventFD(dir, control string) (int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, err
	}
	f, err := os.Open(control)
	if err == nil {
		line := strconv.Itoa(fd) + " " + strconv.Itoa(int(f.Fd()))
		err = os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(line), 0)
		_ = f.Close() // only read
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// happened is called in the poller's loop.
func (w *oomWatch) happened(uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	var buf [1024]byte
	if !w.v2 {
		// The kernel counts it up for each lack of memory, before it kills, and
		// when the cgroup is removed.
		_, err := unix.Read(w.fd, buf[:8])
		if _, gone := os.Stat(w.path); err != nil || gone != nil {
			return
		}
	} else {
		_, _ = unix.Pread(w.fd, buf[:], 0) // so that the next change shows
		kills, err := oomKills(w.path)
		if err != nil || kills <= w.kills {
			return // the cgroup is being removed, or nobody was killed
		}
		w.kills = kills
	}
	w.c.s.events.Publish(w.c.namespace, "/tasks/oom", &events.TaskOOM{ContainerID: w.c.id})
}

// oomKills reads how many processes were killed for want of memory.
func oomKills(path string) (uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strconv.ParseUint(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no oom_kill", path)
}

// close ends the watch. Closing twice is safe.
func (w *oomWatch) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	w.closed = true
	w.c.s.poll.Remove(w.token, w.fd)
	unix.Close(w.fd)
}
