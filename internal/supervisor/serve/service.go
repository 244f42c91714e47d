package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/supervisor/wire"
)

// A service is containerd's Task API, version 3.
type service struct{ s *Server }

var _ taskAPI.TTRPCTaskService = service{}

// grpc gives an error the kind that a client sees.
func grpc(err error) error {
	if err == nil {
		return nil
	}
	return errgrpc.ToGRPC(err)
}

func done(err error) (*emptypb.Empty, error) {
	if err != nil {
		return nil, grpc(err)
	}
	return &emptypb.Empty{}, nil
}

// find returns a container that was made.
func (s *Server) find(ctx context.Context, id string) (*container, error) {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	if c != nil {
		select {
		case <-c.made:
			if c.failed == nil {
				return c, nil
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
}

func (s *Server) findProcess(ctx context.Context, id, execID string) (*process, error) {
	c, err := s.find(ctx, id)
	if err != nil {
		return nil, err
	}
	return c.exec(execID)
}

// Create makes a container. One that is there already is no error: so the
// daemon joins a container that was adopted.
func (v service) Create(ctx context.Context, r *taskAPI.CreateTaskRequest) (*taskAPI.CreateTaskResponse, error) {
	if r.ID == "" || r.ID != filepath.Base(r.ID) || !filepath.IsAbs(r.Bundle) {
		return nil, grpc(fmt.Errorf("create needs an ID that is a name and an absolute bundle: %w", errdefs.ErrInvalidArgument))
	}
	if r.Checkpoint != "" {
		return nil, grpc(fmt.Errorf("restoring a checkpoint is not supported: %w", errdefs.ErrNotImplemented))
	}
	opts, err := readOptions(r)
	if err != nil {
		return nil, grpc(err)
	}
	c, fresh := v.s.reserve(r, opts, namespaceOf(ctx))
	if !fresh {
		if c, err = v.s.find(ctx, r.ID); err != nil {
			return nil, grpc(err)
		}
		pid, _, _ := c.init.status()
		return &taskAPI.CreateTaskResponse{Pid: uint32(pid)}, nil
	}
	if err := c.create(r); err != nil {
		v.s.drop(c, err)
		return nil, grpc(err)
	}
	close(c.made)
	v.s.created(c, r)
	pid, _, _ := c.init.status()
	return &taskAPI.CreateTaskResponse{Pid: uint32(pid)}, nil
}

// Start starts what was made.
func (v service) Start(ctx context.Context, r *taskAPI.StartRequest) (*taskAPI.StartResponse, error) {
	p, err := v.s.findProcess(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, grpc(err)
	}
	if r.ExecID == "" {
		err = p.c.start()
	} else {
		err = p.c.startExec(ctx, p)
	}
	if err != nil {
		return nil, grpc(err)
	}
	v.s.startedEvent(p)
	pid, _, _ := p.status()
	return &taskAPI.StartResponse{Pid: uint32(pid)}, nil
}

// Delete removes what does not run.
func (v service) Delete(ctx context.Context, r *taskAPI.DeleteRequest) (*taskAPI.DeleteResponse, error) {
	p, err := v.s.findProcess(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, grpc(err)
	}
	var end exit
	if r.ExecID == "" {
		if end, err = p.c.delete(ctx); err == nil {
			v.s.drop(p.c, nil)
			v.s.deletedEvent(p, end)
		}
	} else {
		end, err = p.c.deleteExec(p)
	}
	if err != nil {
		return nil, grpc(err)
	}
	pid, _, _ := p.status()
	return &taskAPI.DeleteResponse{Pid: uint32(pid), ExitStatus: end.Status, ExitedAt: stamp(end.At)}, nil
}

func (c *container) deleteExec(p *process) (exit, error) {
	pid, running, end := p.status()
	if running {
		return end, fmt.Errorf("process %s runs; kill it first: %w", p, errdefs.ErrFailedPrecondition)
	}
	if pid == 0 { // it was never started
		end = exit{At: time.Now()}
	}
	p.io.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, p.execID)
	return end, nil
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// State is what a process is like.
func (v service) State(ctx context.Context, r *taskAPI.StateRequest) (*taskAPI.StateResponse, error) {
	p, err := v.s.findProcess(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, grpc(err)
	}
	pid, running, end := p.status()
	p.c.mu.Lock()
	started, paused := p.c.started, p.c.paused
	p.c.mu.Unlock()
	res := &taskAPI.StateResponse{
		ID: r.ID, ExecID: r.ExecID, Bundle: p.c.bundle, Pid: uint32(pid), Status: task.Status_STOPPED,
		Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr, Terminal: p.terminal,
		ExitStatus: end.Status, ExitedAt: stamp(end.At),
	}
	switch {
	case pid == 0, running && p.execID == "" && !started:
		res.Status = task.Status_CREATED
	case running && paused:
		res.Status = task.Status_PAUSED
	case running:
		res.Status = task.Status_RUNNING
	}
	if r.ExecID != "" {
		res.ID = r.ExecID // as runc's shim says
	}
	return res, nil
}

// Pids lists a container's processes. One that has ended shows its init until
// it is deleted: containerd, when it starts, deletes what shows none, and with
// it the exit code.
func (v service) Pids(ctx context.Context, r *taskAPI.PidsRequest) (*taskAPI.PidsResponse, error) {
	c, err := v.s.find(ctx, r.ID)
	if err != nil {
		return nil, grpc(err)
	}
	own, running, _ := c.init.status()
	pids := []int{own}
	if running {
		if pids, err = c.lib.Processes(); err != nil {
			return nil, grpc(err)
		}
	}
	res := &taskAPI.PidsResponse{}
	for _, pid := range pids {
		res.Processes = append(res.Processes, &task.ProcessInfo{Pid: uint32(pid)})
	}
	return res, nil
}

// Pause freezes a container.
func (v service) Pause(ctx context.Context, r *taskAPI.PauseRequest) (*emptypb.Empty, error) {
	return done(v.freeze(ctx, r.ID, true))
}

// Resume thaws it.
func (v service) Resume(ctx context.Context, r *taskAPI.ResumeRequest) (*emptypb.Empty, error) {
	return done(v.freeze(ctx, r.ID, false))
}

func (v service) freeze(ctx context.Context, id string, on bool) error {
	c, err := v.s.find(ctx, id)
	if err != nil {
		return err
	}
	c.life.Lock()
	defer c.life.Unlock()
	if on {
		err = c.lib.Pause()
	} else {
		err = c.lib.Resume()
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.paused = on
	c.mu.Unlock()
	v.s.pausedEvent(c, on)
	return nil
}

// Kill sends a signal.
func (v service) Kill(ctx context.Context, r *taskAPI.KillRequest) (*emptypb.Empty, error) {
	p, err := v.s.findProcess(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, grpc(err)
	}
	if r.ExecID != "" {
		return done(p.signal(unix.Signal(r.Signal)))
	}
	return done(p.c.kill(ctx, unix.Signal(r.Signal), r.All))
}

// Exec prepares a process beside the init; Start starts it.
func (v service) Exec(ctx context.Context, r *taskAPI.ExecProcessRequest) (*emptypb.Empty, error) {
	c, err := v.s.find(ctx, r.ID)
	if err != nil {
		return nil, grpc(err)
	}
	if r.ExecID == "" || r.ExecID != filepath.Base(r.ExecID) || r.Spec == nil {
		return nil, grpc(fmt.Errorf("exec needs an ID and a process: %w", errdefs.ErrInvalidArgument))
	}
	var spec specs.Process
	if err := json.Unmarshal(r.Spec.Value, &spec); err != nil {
		return nil, grpc(fmt.Errorf("process of exec %s: %w: %w", r.ExecID, err, errdefs.ErrInvalidArgument))
	}
	spec.Terminal = r.Terminal
	p := newProcess(c, r.ExecID, &spec)
	p.stdin, p.stdout, p.stderr, p.terminal = r.Stdin, r.Stdout, r.Stderr, r.Terminal
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.deleted:
		return nil, grpc(fmt.Errorf("container %s: %w", r.ID, errdefs.ErrNotFound))
	case c.execs[r.ExecID] != nil:
		return nil, grpc(fmt.Errorf("process %s: %w", p, errdefs.ErrAlreadyExists))
	}
	c.execs[r.ExecID] = p
	v.s.execEvent(p)
	return &emptypb.Empty{}, nil
}

// ResizePty gives a console a size.
func (v service) ResizePty(ctx context.Context, r *taskAPI.ResizePtyRequest) (*emptypb.Empty, error) {
	p, err := v.s.findProcess(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, grpc(err)
	}
	return done(p.io.resize(r.Width, r.Height))
}

// CloseIO ends a process's input.
func (v service) CloseIO(ctx context.Context, r *taskAPI.CloseIORequest) (*emptypb.Empty, error) {
	p, err := v.s.findProcess(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, grpc(err)
	}
	if !r.Stdin {
		return &emptypb.Empty{}, nil
	}
	err = p.io.closeStdin()
	if r.ExecID == "" {
		err = errors.Join(err, p.c.save())
	}
	return done(err)
}

// Checkpoint is not supported.
func (v service) Checkpoint(context.Context, *taskAPI.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, grpc(fmt.Errorf("checkpoints are not supported: %w", errdefs.ErrNotImplemented))
}

// Wait waits for the end of a process.
func (v service) Wait(ctx context.Context, r *taskAPI.WaitRequest) (*taskAPI.WaitResponse, error) {
	p, err := v.s.findProcess(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, grpc(err)
	}
	select {
	case <-p.exited:
	case <-ctx.Done():
		return nil, grpc(ctx.Err())
	}
	_, _, end := p.status()
	return &taskAPI.WaitResponse{ExitStatus: end.Status, ExitedAt: stamp(end.At)}, nil
}

// Connect tells numbers.
func (v service) Connect(ctx context.Context, r *taskAPI.ConnectRequest) (*taskAPI.ConnectResponse, error) {
	c, err := v.s.find(ctx, r.ID)
	if err != nil {
		return nil, grpc(err)
	}
	pid, _, _ := c.init.status()
	return &taskAPI.ConnectResponse{ShimPid: uint32(os.Getpid()), TaskPid: uint32(pid), Version: fmt.Sprint(wire.Version)}, nil
}

// Shutdown is for a shim of one container: containerd sends it when that is
// gone, and nothing is left to do. Without an ID it ends this process, if no
// container is left.
func (v service) Shutdown(_ context.Context, r *taskAPI.ShutdownRequest) (*emptypb.Empty, error) {
	if r.ID == "" {
		v.s.endIfEmpty()
	}
	return &emptypb.Empty{}, nil
}
