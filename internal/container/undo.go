package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"

	"berth/internal/engine"
	"berth/internal/host"
	"berth/internal/record"
	"berth/internal/steps"
)

// clearTimeout bounds the removal of one container's task and processes.
const clearTimeout = 20 * time.Second

// undoCreate gives what takes back each step of Create, by its name. Each is
// idempotent and needs no more than the ID.
func (s *Service) undoCreate(id string) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"record": func(context.Context) error { return s.Store.Containers.Delete(id) },
		"directories": func(context.Context) error {
			return errors.Join(host.RemoveTree(s.Paths.Root, "containers/"+id), host.RemoveTree(s.Paths.State, "containers/"+id))
		},
		"user": func(ctx context.Context) error {
			if err := host.UnmountBelow(s.Paths.ContainerState(id)); err != nil {
				return err
			}
			return ignoreGone(s.client.SnapshotService(s.snapshotterOf(id)).Remove(s.Engine.Context(ctx), viewOf(id)))
		},
		"images":    func(ctx context.Context) error { return s.dropImageViews(ctx, id) },
		"container": func(ctx context.Context) error { return s.Engine.DropContainer(ctx, id, s.snapshotterOf(id)) },
		"volumes":   func(context.Context) error { return host.UnmountBelow(s.Paths.ContainerState(id)) },
	}
}

// createOrder is the order of Create's steps that have an undo.
var createOrder = []string{"record", "directories", "user", "images", "container", "volumes"}

func (s *Service) snapshotterOf(id string) string {
	if c, err := s.Store.Containers.Get(id); err == nil && c.Snapshotter != "" {
		return c.Snapshotter
	}
	return s.Snapshotter
}

func ignoreGone(err error) error {
	if notFound(err) {
		return nil
	}
	return err
}

// Undo takes back what op left half made of a container, or what a container
// that no record names left on the machine. Nothing is undone where op was
// through but for the journal, nor for Stop and Remove, which their retry
// finishes.
func (s *Service) Undo(ctx context.Context, op, id string) error {
	release, err := s.slots.Acquire(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	c, err := s.Store.Containers.Get(id)
	switch {
	case op == steps.CreateContainer && (err != nil || c.State == record.ContainerCreating):
		undo := s.undoCreate(id)
		list := []steps.Step{}
		for _, name := range createOrder {
			list = append(list, steps.Step{Name: name, Undo: undo[name]})
		}
		// A container without a record may have a task, too.
		list = append(list, s.undoStart(id)...)
		return s.Steps.Undo(ctx, op, id, list...)
	case op == steps.StartContainer && err == nil && c.State == record.ContainerCreated:
		return s.Steps.Undo(ctx, op, id, s.undoStart(id)...)
	}
	return s.Steps.Undo(ctx, op, id)
}

// undoStart are the steps of Start that have an undo.
func (s *Service) undoStart(id string) []steps.Step {
	return []steps.Step{
		{Name: "stdio", Undo: func(ctx context.Context) error { return s.dropStdio(ctx, id, nil) }},
		{Name: "task", Undo: func(ctx context.Context) error {
			return errors.Join(s.clearTask(ctx, id), host.UnmountBelow(s.imagesDir(id)))
		}},
	}
}

// clearTask ends whatever runs for a container and removes every trace of its
// task, also of one that was cut while being made: the task, the shim and runc
// processes that name the container, its cgroup with all in it, the shim's
// bundle and runc's state.
func (s *Service) clearTask(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(s.Engine.Context(ctx), clearTimeout)
	defer cancel()
	if err := s.deleteTask(ctx, id); err != nil {
		s.Log.Debug("task not deleted by containerd; its processes are ended directly", "container", id, "err", err)
	}
	if name := s.supervisorOf(id); name != "" {
		s.deleteSupervised(ctx, name, id)
	} else if err := killNamed(ctx, id); err != nil {
		return err
	}
	if cgroup := s.cgroupOf(id); cgroup != "" {
		if err := errors.Join(s.Cgroups.KillAll(ctx, cgroup), s.Cgroups.Remove(cgroup)); err != nil {
			return err
		}
	}
	return s.removeBundle(id)
}

func (s *Service) cgroupOf(id string) string {
	if c, err := s.Store.Containers.Get(id); err == nil {
		return c.Cgroup
	}
	return ""
}

// deleteTask removes the container's task, running or not; none is no error.
func (s *Service) deleteTask(ctx context.Context, id string) error {
	c, err := s.client.LoadContainer(ctx, id)
	if err != nil {
		return ignoreGone(err)
	}
	task, err := c.Task(ctx, nil)
	if err != nil {
		return ignoreGone(err)
	}
	_, err = task.Delete(ctx, containerd.WithProcessKill)
	return ignoreGone(err)
}

// killNamed ends the shim and runtime processes started for a container, until
// none is left: one that is being started may start another.
func killNamed(ctx context.Context, id string) error {
	ours, err := host.InOurNamespaces()
	if err != nil {
		return err
	}
	for {
		found, err := host.FindProcesses(func(cmdline []string) bool { return names(cmdline, id) }, ours)
		if err != nil || len(found) == 0 {
			return err
		}
		for _, p := range found {
			if err := p.Signal(syscall.SIGKILL); err != nil && !notFound(err) {
				return err
			}
			if err := p.Wait(ctx); err != nil {
				return fmt.Errorf("process %d of container %s does not end: %w", p.PID, id, err)
			}
		}
	}
}

// names tells whether a command line is that of a shim or of runc for the
// container.
func names(cmdline []string, id string) bool {
	if len(cmdline) == 0 || !slices.Contains(cmdline[1:], id) {
		return false
	}
	program := filepath.Base(cmdline[0])
	return strings.HasPrefix(program, "containerd-shim-") || strings.HasPrefix(program, "runc")
}

// removeBundle removes what a shim and runc keep of a container on disk. The
// embedded containerd removes its part itself unless it was cut.
func (s *Service) removeBundle(id string) error {
	errs := []error{host.RemoveTree(s.Paths.State, filepath.Join("runc", engine.Namespace, id))}
	if s.Engine.Embedded() {
		bundles := filepath.Join("io.containerd.runtime.v2.task", engine.Namespace, id)
		bundle := filepath.Join(s.Paths.ContainerdState(), bundles)
		if _, err := os.Lstat(bundle); err == nil {
			errs = append(errs, host.UnmountBelow(bundle))
		}
		errs = append(errs, host.RemoveTree(s.Paths.ContainerdState(), bundles), host.RemoveTree(s.Paths.Containerd(), bundles))
	}
	return errors.Join(errs...)
}
