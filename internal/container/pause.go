package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"berth/internal/host"
	"berth/internal/record"
	"berth/internal/spec"
	"berth/internal/supervisor/podinit"
)

// The sandbox container of a pod whose handler's shim wants one: in containerd
// it has the sandbox's ID, no image and no snapshot. Its root is a directory
// with one program of some hundred bytes; its task holds the pod together. To
// clients of the CRI it is no container: its record is the sandbox's.

// kindLabel tells pods from containers, for tools that look into containerd.
const kindLabel, kindSandbox, kindContainer = "io.cri-containerd.kind", "sandbox", "container"

// WantsPause tells whether the handler's pods have a sandbox container.
func (s *Service) WantsPause(handler string) bool { return s.Handlers[handler].Pause }

// StartPause makes and starts the pod's sandbox container and returns its
// process, with which the pod ends. What it leaves half made DropPause removes.
func (s *Service) StartPause(ctx context.Context, box *record.Sandbox) (host.Process, error) {
	p, err := s.startPause(s.Engine.Context(ctx), box)
	if err != nil {
		return p, fmt.Errorf("sandbox container of handler %s: %w", box.Handler, err)
	}
	return p, nil
}

func (s *Service) startPause(ctx context.Context, box *record.Sandbox) (p host.Process, err error) {
	root := filepath.Join(s.Paths.SandboxState(box.ID), "pause")
	if err := writePause(root); err != nil {
		return p, err
	}
	made, err := s.pauseRecord(box)
	if err != nil {
		return p, err
	}
	if _, err := s.client.ContainerService().Create(ctx, made); err != nil {
		return p, err
	}
	c, err := s.client.LoadContainer(ctx, box.ID)
	if err != nil {
		return p, err
	}
	task, err := c.NewTask(ctx, cio.NullIO, containerd.WithRootFS([]mount.Mount{{Type: "bind", Source: root, Options: []string{"rbind", "ro"}}}))
	if err != nil {
		return p, err
	}
	if err := task.Start(ctx); err != nil {
		return p, err
	}
	return host.ProcessOf(int(task.Pid()))
}

// writePause makes the directory that is the container's root: what runs, and
// where its mounts go.
func writePause(root string) error {
	program, err := podinit.Program()
	if err != nil {
		return err
	}
	for _, dir := range []string{root, filepath.Join(root, "proc"), filepath.Join(root, "dev")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask: it is no root's process
			return err
		}
	}
	path := filepath.Join(root, spec.PauseProgram)
	if err := os.WriteFile(path, program, 0o555); err != nil {
		return err
	}
	return os.Chmod(path, 0o555)
}

// pauseRecord is containerd's record of the container.
func (s *Service) pauseRecord(box *record.Sandbox) (containers.Container, error) {
	h := s.Handlers[box.Handler]
	var n spec.Namespaces
	s.joinPod(box, &n)
	made, err := spec.Pause(spec.Input{
		ID: box.ID, SandboxID: box.ID, Sandbox: box.Config, Namespaces: n, Shm: s.Paths.Shm(box.ID),
		CgroupsPath: s.Cgroups.OCIPath(box.CgroupParent, box.ID), Kernel: s.Kernel, PodAnnotations: h.PodAnnotations,
	})
	if err != nil {
		return containers.Container{}, err
	}
	body, err := typeurl.MarshalAny(made)
	if err != nil {
		return containers.Container{}, err
	}
	options, err := s.shimOptions(h, hostUser{})
	return containers.Container{
		ID: box.ID, Labels: s.marked(box.Config.GetLabels(), kindSandbox), Spec: body,
		Runtime: containers.RuntimeInfo{Name: h.Type, Options: options},
	}, err
}

// optionsOf are those of a shim that reads a file of its own.
func optionsOf(h Handler) (typeurl.Any, error) {
	if h.ConfigPath == "" {
		return nil, nil
	}
	o := &runtimeoptions.Options{ConfigPath: h.ConfigPath}
	if !filepath.IsAbs(h.Type) {
		o.TypeUrl = h.Type + ".options"
	}
	return typeurl.MarshalAny(o)
}

// DropPause ends and removes the pod's sandbox container, with its processes in
// the cgroup, whatever became of StartPause. It is idempotent. Containers of
// the pod that were ended give back their tasks first, for they may share its
// shim.
func (s *Service) DropPause(ctx context.Context, id, cgroup string) error {
	if err := s.awaitGone(ctx, id); err != nil {
		return err
	}
	ctx = s.Engine.Context(ctx)
	errs := []error{s.endTask(ctx, id, "", cgroup)}
	if err := ignoreGone(s.client.ContainerService().Delete(ctx, id)); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, host.RemoveTree(s.Paths.State, filepath.Join("sandboxes", id, "pause")))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove the sandbox container: %w", err)
	}
	return nil
}

// awaitGone waits until the sandbox's containers that have ended have given
// back what they held.
func (s *Service) awaitGone(ctx context.Context, sandboxID string) error {
	ctx, cancel := context.WithTimeout(ctx, clearTimeout)
	defer cancel()
	for _, c := range s.of(sandboxID) {
		l := s.liveOf(c.ID)
		if l == nil {
			continue
		}
		select {
		case <-l.gone:
		case <-ctx.Done():
			return fmt.Errorf("container %s of sandbox %s holds its task: %w", c.ID, sandboxID, errdefs.ErrUnavailable)
		}
	}
	return nil
}

// AsksShim tells whether what a container uses is known to its shim alone.
func (s *Service) AsksShim(c *record.Container) bool { return s.Handlers[c.Handler].Pause }

// Metrics are what the container's shim says that it uses. ErrNotFound for one
// that is gone.
func (s *Service) Metrics(ctx context.Context, id string) (any, error) {
	_, l, err := s.running(id)
	if err != nil {
		return nil, err
	}
	task, err := l.task()
	if err != nil {
		return nil, err
	}
	said, err := task.Metrics(s.Engine.Context(ctx))
	if err != nil {
		return nil, err
	}
	return typeurl.UnmarshalAny(said.GetData())
}

// hasEnded asks a shim whether the container's process has ended: where it runs
// in a kernel of its own, this machine's does not know.
func (l *live) hasEnded(ctx context.Context) bool {
	select {
	case <-l.ended:
		return true
	default:
	}
	if l.supervisor != "" {
		return false
	}
	task, err := l.task()
	if err != nil {
		return false
	}
	status, err := task.Status(ctx)
	return notFound(err) || err == nil && status.Status == containerd.Stopped
}
