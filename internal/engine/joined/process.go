package joined

import (
	"context"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/runtime"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// A process is a task's init (no exec ID) or one that was executed in it.
type process struct {
	task   *Task
	id     string
	execID string
}

// ID is that of the container or of the execution.
func (p *process) ID() string {
	if p.execID != "" {
		return p.execID
	}
	return p.id
}

// missed is Task's for a task's init. Where an execution is not there, the
// container may be.
func (p *process) missed(err error) error {
	if p.execID != "" {
		return err
	}
	return p.task.missed(err)
}

// State is what the process is like.
func (p *process) State(ctx context.Context) (state runtime.State, err error) {
	err = p.task.ask(func(s taskAPI.TTRPCTaskService) error {
		res, err := s.State(ctx, &taskAPI.StateRequest{ID: p.id, ExecID: p.execID})
		if err != nil {
			return err
		}
		state = runtime.State{
			Pid: res.Pid, Status: statuses[res.Status], ExitStatus: res.ExitStatus, ExitedAt: timeOf(res.ExitedAt),
			Stdin: res.Stdin, Stdout: res.Stdout, Stderr: res.Stderr, Terminal: res.Terminal,
		}
		return nil
	})
	return state, p.missed(err)
}

// Kill signals the process, or all of the container.
func (p *process) Kill(ctx context.Context, signal uint32, all bool) error {
	return p.task.ask(func(s taskAPI.TTRPCTaskService) error {
		_, err := s.Kill(ctx, &taskAPI.KillRequest{ID: p.id, ExecID: p.execID, Signal: signal, All: all})
		return err
	})
}

// ResizePty sets the size of the process's terminal.
func (p *process) ResizePty(ctx context.Context, size runtime.ConsoleSize) error {
	return p.task.ask(func(s taskAPI.TTRPCTaskService) error {
		_, err := s.ResizePty(ctx, &taskAPI.ResizePtyRequest{ID: p.id, ExecID: p.execID, Width: size.Width, Height: size.Height})
		return err
	})
}

// CloseIO ends the process's input.
func (p *process) CloseIO(ctx context.Context) error {
	return p.task.ask(func(s taskAPI.TTRPCTaskService) error {
		_, err := s.CloseIO(ctx, &taskAPI.CloseIORequest{ID: p.id, ExecID: p.execID, Stdin: true})
		return err
	})
}

// Start starts what was made.
func (p *process) Start(ctx context.Context) error {
	return p.task.ask(func(s taskAPI.TTRPCTaskService) error {
		_, err := s.Start(ctx, &taskAPI.StartRequest{ID: p.id, ExecID: p.execID})
		return err
	})
}

// Wait waits for the process's end.
func (p *process) Wait(ctx context.Context) (exit *runtime.Exit, err error) {
	err = p.task.ask(func(s taskAPI.TTRPCTaskService) error {
		res, err := s.Wait(ctx, &taskAPI.WaitRequest{ID: p.id, ExecID: p.execID})
		if err != nil {
			return err
		}
		exit = &runtime.Exit{Status: res.ExitStatus, Timestamp: timeOf(res.ExitedAt)}
		return nil
	})
	return exit, p.missed(err)
}

// Delete removes a process that does not run.
func (p *process) Delete(ctx context.Context) (exit *runtime.Exit, err error) {
	err = p.task.ask(func(s taskAPI.TTRPCTaskService) error {
		res, err := s.Delete(ctx, &taskAPI.DeleteRequest{ID: p.id, ExecID: p.execID})
		if err != nil {
			return err
		}
		exit = &runtime.Exit{Pid: res.Pid, Status: res.ExitStatus, Timestamp: timeOf(res.ExitedAt)}
		return nil
	})
	return exit, p.missed(err)
}

// statuses are those of the Task API in containerd's own count.
var statuses = map[task.Status]runtime.Status{
	task.Status_CREATED: runtime.CreatedStatus,
	task.Status_RUNNING: runtime.RunningStatus,
	task.Status_STOPPED: runtime.StoppedStatus,
	task.Status_PAUSED:  runtime.PausedStatus,
	task.Status_PAUSING: runtime.PausingStatus,
}

// timeOf is the zero time for one that was not given.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
