package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	containerd "github.com/containerd/containerd/v2/client"

	"berth/internal/container/shims"
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
	return s.endTask(s.Engine.Context(ctx), id, s.supervisorOf(id), s.cgroupOf(id))
}

// endTask is clearTask for a container that supervisor has, or a shim where
// that is "", and whose cgroup is known or "".
func (s *Service) endTask(ctx context.Context, id, supervisor, cgroup string) error {
	ctx, cancel := context.WithTimeout(ctx, clearTimeout)
	defer cancel()
	if err := s.deleteTask(ctx, id); err != nil {
		s.Log.Debug("task not deleted by containerd; its processes are ended directly", "container", id, "err", err)
	}
	if supervisor != "" {
		s.deleteSupervised(ctx, supervisor, id)
	} else if err := shims.End(ctx, id); err != nil {
		return err
	}
	if cgroup != "" {
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

// removeBundle removes what a shim and runc keep of a container on disk. The
// embedded containerd removes its part itself unless it was cut.
func (s *Service) removeBundle(id string) error {
	errs := []error{host.RemoveTree(s.Paths.State, filepath.Join("runc", engine.Namespace, id))}
	if s.Engine.Embedded() {
		for _, dir := range engine.BundleDirs(id) {
			bundle := filepath.Join(s.Paths.ContainerdState(), dir)
			if _, err := os.Lstat(bundle); err == nil {
				errs = append(errs, host.UnmountBelow(bundle))
			}
			errs = append(errs, host.RemoveTree(s.Paths.ContainerdState(), dir), host.RemoveTree(s.Paths.Containerd(), dir))
		}
	}
	return errors.Join(errs...)
}
