package serve

import (
	"context"

	"github.com/containerd/containerd/api/events"
	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
)

// namespaceHeader is where containerd puts the namespace of a call.
const namespaceHeader = "containerd-namespace-ttrpc"

// defaultNamespace is that of calls without one: tests and tools.
const defaultNamespace = "default"

func namespaceOf(ctx context.Context) string {
	if ns, ok := ttrpc.GetMetadataValue(ctx, namespaceHeader); ok {
		return ns
	}
	return defaultNamespace
}

// The events below are those of containerd's shims.

func (s *Server) created(c *container, r *taskAPI.CreateTaskRequest) {
	pid, _, _ := c.init.status()
	s.events.Publish(c.namespace, "/tasks/create", &events.TaskCreate{
		ContainerID: c.id, Bundle: c.bundle, Rootfs: r.Rootfs, Pid: uint32(pid),
		IO: &events.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
	})
}

func (s *Server) startedEvent(p *process) {
	pid, _, _ := p.status()
	if p.execID == "" {
		s.events.Publish(p.c.namespace, "/tasks/start", &events.TaskStart{ContainerID: p.c.id, Pid: uint32(pid)})
		return
	}
	s.events.Publish(p.c.namespace, "/tasks/exec-started", &events.TaskExecStarted{ContainerID: p.c.id, ExecID: p.execID, Pid: uint32(pid)})
}

func (s *Server) execEvent(p *process) {
	s.events.Publish(p.c.namespace, "/tasks/exec-added", &events.TaskExecAdded{ContainerID: p.c.id, ExecID: p.execID})
}

func (s *Server) pausedEvent(c *container, paused bool) {
	if paused {
		s.events.Publish(c.namespace, "/tasks/paused", &events.TaskPaused{ContainerID: c.id})
		return
	}
	s.events.Publish(c.namespace, "/tasks/resumed", &events.TaskResumed{ContainerID: c.id})
}

// told says that a process has ended.
func (s *Server) told(p *process, end exit) {
	id := p.execID
	if id == "" {
		id = p.c.id
	}
	p.mu.Lock()
	pid := p.pid
	p.mu.Unlock()
	s.events.Publish(p.c.namespace, "/tasks/exit", &events.TaskExit{
		ContainerID: p.c.id, ID: id, Pid: uint32(pid), ExitStatus: end.Status, ExitedAt: stamp(end.At),
	})
}

func (s *Server) deletedEvent(p *process, end exit) {
	pid, _, _ := p.status()
	s.events.Publish(p.c.namespace, "/tasks/delete", &events.TaskDelete{
		ContainerID: p.c.id, Pid: uint32(pid), ExitStatus: end.Status, ExitedAt: stamp(end.At),
	})
}
