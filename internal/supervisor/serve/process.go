package serve

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/internal/supervisor/watch"
)

// unknownExit is the code of a process whose own is not known.
const unknownExit = 255

// A process is a container's init or one that was executed beside it.
type process struct {
	c      *container
	execID string // "" for the init
	spec   *specs.Process
	// As the request named them.
	stdin, stdout, stderr string
	terminal              bool

	io     stdio
	lib    *libcontainer.Process // nil for one that was adopted
	exited chan struct{}         // closed when the end is known and told

	mu    sync.Mutex // guards what follows
	pid   int        // 0: not started
	start uint64
	pidfd int // -1: none
	token int32
	dead  bool // it has ended; exited is closed when its output is in the log
	end   exit
}

// An exit is how a process ended.
type exit struct {
	Status uint32    `json:"status"`
	At     time.Time `json:"at"`
	// Reason says why the status is not known.
	Reason string `json:"reason,omitempty"`
}

func newProcess(c *container, execID string, spec *specs.Process) *process {
	return &process{c: c, execID: execID, spec: spec, pidfd: -1, exited: make(chan struct{})}
}

// libProcess is the spec's process for libcontainer.
func libProcess(p *specs.Process) (*libcontainer.Process, error) {
	if p == nil || len(p.Args) == 0 {
		return nil, fmt.Errorf("process.args is empty: %w", errdefs.ErrInvalidArgument)
	}
	for _, r := range p.Rlimits {
		if _, ok := rlimits[r.Type]; !ok {
			return nil, fmt.Errorf("process.rlimits: %q is unknown: %w", r.Type, errdefs.ErrInvalidArgument)
		}
	}
	affinity, err := configs.ConvertCPUAffinity(p.ExecCPUAffinity)
	if err != nil {
		return nil, fmt.Errorf("process.execCPUAffinity: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	lp := &libcontainer.Process{
		Args: p.Args, Env: p.Env, Cwd: p.Cwd,
		UID: int(p.User.UID), GID: int(p.User.GID),
		Label: p.SelinuxLabel, NoNewPrivileges: &p.NoNewPrivileges, AppArmorProfile: p.ApparmorProfile,
		Scheduler: p.Scheduler, IOPriority: p.IOPriority, Rlimits: rlimitsOf(p), CPUAffinity: affinity,
		LogLevel: "3", // logrus's warnings
	}
	for _, g := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(g))
	}
	if c := p.Capabilities; c != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable, Permitted: c.Permitted, Ambient: c.Ambient,
		}
	}
	if p.ConsoleSize != nil {
		lp.ConsoleWidth, lp.ConsoleHeight = uint16(p.ConsoleSize.Width), uint16(p.ConsoleSize.Height)
	}
	return lp, nil
}

// connect gives the process its standard streams. A nil *os.File must not
// become an io.Reader.
func (p *process) connect(lp *libcontainer.Process) {
	if p.io.in != nil {
		lp.Stdin = p.io.in
	}
	if p.io.out != nil {
		lp.Stdout = p.io.out
	}
	if p.io.err != nil {
		lp.Stderr = p.io.err
	}
	lp.ConsoleSocket = p.io.theirSocket
}

// watch notes the number of a process that is there, and waits for its end.
func (p *process) watch(pid int) error {
	stat, err := watch.ReadStat(pid)
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	return p.watchFD(pid, stat.Start, fd)
}

// watchFD is watch for one whose pidfd is there; it takes the descriptor.
func (p *process) watchFD(pid int, start uint64, fd int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	token, err := p.c.s.poll.Add(fd, unix.EPOLLIN|unix.EPOLLONESHOT, func(uint32) { go p.ended() })
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	p.pid, p.start, p.pidfd, p.token = pid, start, fd, token
	return nil
}

// ended is called when the pidfd says that the process has ended.
func (p *process) ended() {
	end := exit{At: time.Now()}
	if p.lib != nil {
		state, err := p.lib.Wait() // it has ended, so this does not wait
		if state == nil {
			end.Status, end.Reason = unknownExit, fmt.Sprintf("its end was taken by someone else: %v", err)
		} else {
			end.Status = watch.ExitCode(unix.WaitStatus(state.Sys().(syscall.WaitStatus)))
		}
	} else {
		var known bool
		if end, known = p.askExit(end); !known {
			return // it is asked again when its parent has taken note
		}
	}
	p.finish(end)
}

// askExit asks the kernel for the exit status of a process that is no child.
// false: it is known once the parent has taken note, which is waited for.
func (p *process) askExit(end exit) (exit, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ws, err := watch.EndOf(p.pid, p.start, p.pidfd)
	switch {
	case err == nil:
		end.Status = watch.ExitCode(ws)
		return end, true
	case errors.Is(err, watch.ErrNotReaped):
		// EPOLLHUP, which always counts, comes when it is reaped.
		if err = p.c.s.poll.Change(p.token, p.pidfd, unix.EPOLLONESHOT); err == nil {
			return end, false
		}
	}
	end.Status = unknownExit
	end.Reason = "the supervisor that was its parent is gone, and this kernel does not tell others how it ended"
	return end, true
}

// finish records the end and what follows from it.
func (p *process) finish(end exit) {
	p.mu.Lock()
	if p.dead {
		p.mu.Unlock()
		return
	}
	p.dead, p.end = true, end
	p.forgetLocked()
	p.mu.Unlock()
	if p.execID == "" {
		p.c.initEnded(end)
	} else {
		if p.terminal {
			p.io.drained(execDrain)
		}
		_ = p.io.closeStdin() // nobody reads it any more
	}
	p.c.s.told(p, end)
	close(p.exited)
}

// forgetLocked closes the pidfd.
func (p *process) forgetLocked() {
	if p.pidfd < 0 {
		return
	}
	p.c.s.poll.Remove(p.token, p.pidfd)
	unix.Close(p.pidfd)
	p.pidfd = -1
}

// signal sends a signal to the process alone. ErrNotFound: it has ended.
func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pid == 0 {
		return fmt.Errorf("process %s was not started: %w", p, errdefs.ErrFailedPrecondition)
	}
	gone := fmt.Errorf("process %s has ended: %w", p, errdefs.ErrNotFound)
	if p.pidfd < 0 {
		return gone
	}
	err := unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return gone
	}
	if err != nil {
		return fmt.Errorf("signal %d to process %s: %w", sig, p, err)
	}
	return nil
}

func (p *process) String() string {
	if p.execID == "" {
		return p.c.id
	}
	return p.c.id + "/" + p.execID
}

// status is pid, whether it runs, and the end of one that does not.
func (p *process) status() (pid int, running bool, end exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pid = p.pid
	select {
	case <-p.exited:
		return pid, false, p.end
	default:
		return pid, pid != 0, exit{}
	}
}

// hostRoot are the numbers of the container's root on the host.
func hostRoot(c *configs.Config) (uid, gid int, err error) {
	if uid, err = c.HostRootUID(); err != nil {
		return 0, 0, err
	}
	gid, err = c.HostRootGID()
	return uid, gid, err
}

// exists tells whether the process that was pid runs.
func exists(pid int, start uint64) bool {
	st, err := watch.ReadStat(pid)
	return err == nil && st.Start == start && !st.IsZombie()
}
