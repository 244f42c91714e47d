package serve

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"berth/internal/logs"
	"berth/internal/supervisor/watch"
	"berth/internal/supervisor/wire"
)

// A state is what the next supervisor must know of a container; FORMAT.md
// describes the file.
type state struct {
	Version   int          `json:"v"`
	ID        string       `json:"id"`
	Namespace string       `json:"namespace"`
	Bundle    string       `json:"bundle"`
	Options   wire.Options `json:"options"`
	Terminal  bool         `json:"terminal,omitempty"`
	Stdin     string       `json:"stdin,omitempty"`
	Stdout    string       `json:"stdout,omitempty"`
	Stderr    string       `json:"stderr,omitempty"`
	// PID is 0 while the container is being made.
	PID     int    `json:"pid,omitempty"`
	Start   uint64 `json:"start,omitempty"`
	Started bool   `json:"started,omitempty"`
	// StdinClosed says that the end of input was told.
	StdinClosed bool  `json:"stdin_closed,omitempty"`
	Exit        *exit `json:"exit,omitempty"`
}

func (s *Server) statePath(id string) string { return filepath.Join(s.tasks, id+".json") }

// save writes the container's state in one step. It is on a tmpfs and not
// synced: it guards against the death of this process, not of the machine.
func (c *container) save() error {
	p := c.init
	st := state{
		Version: wire.Version, ID: c.id, Namespace: c.namespace, Bundle: c.bundle, Options: c.opts,
		Terminal: p.terminal, Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr,
	}
	p.mu.Lock()
	st.PID, st.Start = p.pid, p.start
	if p.dead {
		end := p.end
		st.Exit = &end
	}
	p.mu.Unlock()
	p.io.mu.Lock()
	st.StdinClosed = p.io.noMore
	p.io.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock() // of several writers each has a whole state, and the last has all
	if c.deleted {
		return nil
	}
	st.Started = c.started
	data, err := json.Marshal(st)
	if err != nil {
		return err
	}
	path := c.s.statePath(c.id)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// forget removes the container's state.
func (c *container) forget() error {
	return errors.Join(removeIfThere(c.rootDir()), removeIfThere(filepath.Dir(c.rootDir())), removeIfThere(c.s.statePath(c.id)), removeIfThere(c.s.statePath(c.id)+".new"))
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// adoptAll takes up the containers that a supervisor that was killed left.
func (s *Server) adoptAll() error {
	entries, err := os.ReadDir(s.tasks)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(s.tasks, e.Name())
		if strings.HasSuffix(e.Name(), ".new") {
			if err := removeIfThere(path); err != nil {
				return err
			}
			continue
		}
		if err := s.adopt(path); err != nil {
			// One container that cannot be taken up is no reason to leave the
			// others. The daemon clears it away when it finds it unknown.
			s.Log.Error("a container that the last supervisor left is not taken up", "file", path, "err", err)
		}
	}
	return s.dropRoots()
}

// dropRoots unmounts root file systems that a killed supervisor was about to.
func (s *Server) dropRoots() error {
	entries, err := os.ReadDir(s.roots)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		dir := s.rootDir(e.Name())
		err = errors.Join(err, unmountRoot(dir))
		if s.containers[e.Name()] == nil {
			err = errors.Join(err, removeIfThere(dir), removeIfThere(filepath.Dir(dir)))
		}
	}
	return err
}

func (s *Server) adopt(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var st state
	if err := json.Unmarshal(data, &st); err != nil {
		return err
	}
	if st.Version != wire.Version {
		return fmt.Errorf("its version is %d, this supervisor knows %d", st.Version, wire.Version)
	}
	c := s.newContainer(st.ID, st.Namespace, st.Bundle, st.Options)
	close(c.made)
	c.init.terminal, c.init.stdin, c.init.stdout, c.init.stderr = st.Terminal, st.Stdin, st.Stdout, st.Stderr
	c.init.io.noMore = st.StdinClosed
	c.started = st.Started
	c.lib, err = libcontainer.Load(s.run, st.ID)
	if err != nil || st.PID == 0 {
		// Its making was cut. An init that was not told what to be ends by
		// itself; one that waits to execute is killed here.
		if err == nil {
			err = c.lib.Destroy()
		}
		return errors.Join(err, os.RemoveAll(filepath.Join(s.run, st.ID)), c.forget())
	}
	config := c.lib.Config()
	c.private = config.Namespaces.IsPrivate(configs.NEWPID)
	if status, err := c.lib.Status(); err == nil {
		c.paused = status == libcontainer.Paused
	}
	if err := c.adoptLog(st); err != nil {
		s.Log.Error("the output of a container is not taken up again", "container", c.id, "err", err)
	}
	s.mu.Lock()
	s.containers[c.id] = c
	s.mu.Unlock()
	c.adoptInit(st)
	return nil
}

// adoptLog opens the container's log and its end of stdin again.
func (c *container) adoptLog(st state) (err error) {
	if c.opts.Stdio == "" {
		return nil
	}
	if _, err := os.Lstat(c.opts.Stdio); err != nil {
		return err // the daemon has taken it away
	}
	if c.log, err = logs.Open(c.logOptions()); err != nil {
		return err
	}
	if st.Exit == nil && c.opts.Stdin && !c.init.terminal && !st.StdinClosed {
		c.init.io.stdin, err = openFIFO(filepath.Join(c.opts.Stdio, "stdin"), unix.O_RDWR|unix.O_NONBLOCK)
	}
	return err
}

// adoptInit finds the init again, or how it ended.
func (c *container) adoptInit(st state) {
	p := c.init
	p.pid, p.start = st.PID, st.Start
	if st.Exit != nil {
		p.dead, p.end = true, *st.Exit
		if c.log != nil {
			c.log.Running()
		}
		close(p.exited)
		return
	}
	if exists(st.PID, st.Start) {
		if fd, err := unix.PidfdOpen(st.PID, 0); err == nil {
			if exists(st.PID, st.Start) && p.watchFD(st.PID, st.Start, fd) == nil {
				// What a terminal writes comes from its console, once that is
				// restored; until then nobody has the FIFO open.
				if c.log != nil && !p.terminal {
					c.log.Running()
				}
				c.oom = c.s.watchOOM(c)
				return
			}
		}
	}
	// It ended meanwhile.
	if ws, err := watch.EndOf(st.PID, st.Start, -1); err == nil {
		go p.finish(exit{Status: watch.ExitCode(ws), At: time.Now()})
		return
	}
	// Somebody may have kept its pidfd and give it back.
	time.AfterFunc(restoreWait, func() {
		p.finish(exit{Status: unknownExit, At: time.Now(),
			Reason: "it ended while no supervisor ran, so how it ended is not known"})
	})
}
