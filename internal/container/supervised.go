package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"berth/internal/record"
	"berth/internal/supervisor/wire"
)

// joinedSandbox is the one sandbox record in containerd that tasks join: with
// it containerd takes the address of a Task API and executes no shim. Which
// supervisor it is, the address says.
const joinedSandbox = "berth-supervisor"

// taskAPI is the version of the Task API that supervisors serve.
const taskAPI = 3

// isCut tells a call that was cut by the end of a supervisor from its refusal.
// containerd hands on no more than the text.
func isCut(err error) bool { return strings.Contains(err.Error(), "ttrpc: closed") }

// supervisorName is the supervisor that a container is to be started by.
func (s *Service) supervisorName(c *record.Container) string {
	if s.Handlers[c.Handler].Supervisor == "pod" {
		return s.Supervisors.PodName(c.SandboxID)
	}
	return s.Supervisors.NodeName()
}

// supervisorOf is the supervisor that has a container, or may.
func (s *Service) supervisorOf(id string) string {
	if c, err := s.Store.Containers.Get(id); err == nil {
		return c.Supervisor
	}
	return ""
}

func (s *Service) supervisorOptions(c *record.Container) (typeurl.Any, error) {
	value, err := json.Marshal(wire.Options{
		SystemdCgroup: s.Cgroups.Driver() == "systemd",
		Stdio:         s.stdioDir(c.ID), LogPath: c.LogPath,
		Stdin: c.Config.GetStdin(), StdinOnce: c.Config.GetStdinOnce(),
	})
	return &anypb.Any{TypeUrl: wire.OptionsType, Value: value}, err
}

// openSupervised makes the directory of the container's FIFOs, which its
// supervisor fills, and sees to it that there is one.
func (s *Service) openSupervised(ctx context.Context, c *record.Container, l *live) error {
	name := s.supervisorName(c)
	if c.Supervisor != name {
		if _, err := s.Store.Containers.Update(c.ID, func(r *record.Container) { r.Supervisor = name }); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(s.stdioDir(c.ID), 0o700); err != nil {
		return err
	}
	l.supervisor, l.io = name, s.Supervisors.Stdio(name, s.stdioOptions(c))
	if err := s.Supervisors.Ensure(ctx, name, c.ID); err != nil {
		return err
	}
	return s.ensureJoined(ctx)
}

// ensureJoined makes the record that tasks join, once an engine.
func (s *Service) ensureJoined(ctx context.Context) error {
	s.mu.Lock()
	joined := s.joined
	s.mu.Unlock()
	if joined {
		return nil
	}
	ctx = s.Engine.Context(ctx)
	store := s.client.SandboxStore()
	_, err := store.Get(ctx, joinedSandbox)
	if notFound(err) {
		_, err = store.Create(ctx, sandbox.Sandbox{ID: joinedSandbox, Runtime: sandbox.RuntimeOpts{Name: wire.RuntimeType}})
		if errdefs.IsAlreadyExists(err) {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("sandbox record %s in containerd: %w", joinedSandbox, err)
	}
	s.mu.Lock()
	s.joined = true
	s.mu.Unlock()
	return nil
}

// join makes the task of a container in its supervisor, or makes it known to
// containerd again where the supervisor has it already.
func (s *Service) join(ctx context.Context, l *live) (containerd.Task, error) {
	c, err := s.client.LoadContainer(s.Engine.Context(ctx), l.id)
	if err != nil {
		return nil, err
	}
	rec, err := s.Store.Containers.Get(l.id)
	if err != nil {
		return nil, err
	}
	config := s.stdioOptions(rec).Config()
	return c.NewTask(s.Engine.Context(ctx), func(string) (cio.IO, error) { return fifos(config) },
		containerd.WithTaskAPIEndpoint(s.Supervisors.Endpoint(l.supervisor), taskAPI),
		containerd.WithRuntimePath(s.SupervisorBinary))
}

// keep has what the next supervisor would need of a container.
func (s *Service) keep(l *live) {
	err := s.Supervisors.Keep(s.base, l.supervisor, l.id, s.stdioDir(l.id))
	if err != nil && !notFound(err) && s.base.Err() == nil {
		s.Log.Warn("were its supervisor killed now, a container's last output and exit code would be lost", "container", l.id, "err", err)
	}
}

// rejoin finds a container again after the connection to its task broke with
// an error. It returns how the container ended where there is no more to find.
// An external containerd, for which the task is dead, needs a moment to forget
// it; so rejoin is called until waiting works.
func (s *Service) rejoin(l *live, broken error) *end {
	ctx, cancel := context.WithTimeout(s.base, clearTimeout)
	defer cancel()
	if err := s.Supervisors.Ensure(ctx, l.supervisor, l.id); err != nil {
		s.Log.Warn("no supervisor to ask about a container", "container", l.id, "err", err)
		return nil
	}
	_, err := s.Supervisors.Task(ctx, l.supervisor, l.id)
	if notFound(err) {
		return &end{unknownExitCode, time.Now(), "Unknown", "the supervisor that watched the container is gone, and the next one did not find it, so how it ended is not known"}
	}
	if err == nil {
		// The task that l has names this one too.
		if _, err = s.loadTask(s.Engine.Context(ctx), l.id); notFound(err) {
			if _, err = s.join(ctx, l); err == nil {
				s.keep(l)
			}
		}
	}
	s.Log.Warn("waiting for the container again", "container", l.id, "err", errors.Join(broken, err))
	return nil
}

// unknownEnd says why a supervisor does not know how a container ended; "":
// it does.
func (s *Service) unknownEnd(l *live) string {
	ctx, cancel := context.WithTimeout(s.base, clearTimeout)
	defer cancel()
	task, err := s.Supervisors.Task(ctx, l.supervisor, l.id)
	if err != nil {
		return "" // it is as likely a plain 255
	}
	return task.Reason
}

// resumeSupervised is Resume for a container that ran in a supervisor.
func (s *Service) resumeSupervised(ctx context.Context, c *record.Container) error {
	l := newLive(c.ID)
	l.supervisor, l.io = c.Supervisor, s.Supervisors.Stdio(c.Supervisor, s.stdioOptions(c))
	if err := s.Supervisors.Ensure(ctx, c.Supervisor, c.ID); err != nil {
		return err
	}
	_, err := s.Supervisors.Task(ctx, c.Supervisor, c.ID)
	if notFound(err) {
		return s.vanished(ctx, c)
	}
	if err != nil {
		return err
	}
	if err := s.ensureJoined(ctx); err != nil {
		return err
	}
	task, err := s.loadTask(s.Engine.Context(ctx), c.ID)
	if notFound(err) {
		task, err = s.join(ctx, l)
	}
	if err != nil {
		return err
	}
	l.setTask(task)
	if err := s.endExecs(ctx, c.ID, task); err != nil {
		s.Log.Warn("commands of the last run are not all ended", "container", c.ID, "err", err)
	}
	s.keep(l)
	s.follow(l)
	return nil
}

// deleteSupervised removes a container from its supervisor, whatever
// containerd knows of it.
func (s *Service) deleteSupervised(ctx context.Context, name, id string) {
	err := s.Supervisors.Ensure(ctx, name, id)
	if err == nil {
		err = s.Supervisors.Delete(ctx, name, id)
	}
	if err != nil {
		s.Log.Warn("a container is not removed from its supervisor; its processes are ended directly", "container", id, "supervisor", name, "err", err)
	}
}
