package joined

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
)

// A Task is one container's, at an address. It has nothing of its own but its
// bundle, so its methods may be called at any time.
type Task struct {
	process
	namespace, address, bundle string
	runtime                    *Runtime
}

var (
	_ runtime.Task        = (*Task)(nil)
	_ runtime.ExecProcess = (*process)(nil)
)

func (r *Runtime) newTask(k key, address string) *Task {
	t := &Task{namespace: k.namespace, address: address, bundle: filepath.Join(r.state, k.namespace, k.id), runtime: r}
	t.process = process{t, k.id, ""}
	return t
}

// writeBundle makes the bundle in place of one that a cut attempt left. It is
// gone with the machine's power, as the task is: nothing is synced.
func (t *Task) writeBundle(spec []byte) error {
	if err := os.RemoveAll(t.bundle); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(t.bundle), 0o711); err != nil {
		return err
	}
	err := os.Mkdir(t.bundle, 0o700)
	if err == nil {
		err = os.WriteFile(filepath.Join(t.bundle, specFile), spec, 0o600)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(t.bundle, addressFile), []byte(t.address), 0o600)
	}
	return err
}

// forget drops the task and its bundle, where it was not made anew meanwhile.
func (t *Task) forget() error {
	k := key{t.namespace, t.id}
	t.runtime.mu.Lock()
	mine := t.runtime.tasks[k] == t
	if mine {
		delete(t.runtime.tasks, k)
	}
	t.runtime.mu.Unlock()
	if !mine {
		return nil
	}
	return os.RemoveAll(t.bundle)
}

// missed drops the task where err, of a call that asked for nothing but the
// container, says that it is not there.
func (t *Task) missed(err error) error {
	if errdefs.IsNotFound(err) {
		return errors.Join(err, t.forget())
	}
	return err
}

// ask has do call the process at the task's address, and makes its error one of
// containerd's.
func (t *Task) ask(do func(taskAPI.TTRPCTaskService) error) error {
	c, err := t.runtime.pool.get(t.address)
	if err != nil {
		return err
	}
	err = do(taskAPI.NewTTRPCTaskClient(c.Client))
	if errors.Is(err, ttrpc.ErrClosed) {
		t.runtime.pool.drop(t.address, c)
		return fmt.Errorf("task API %s: %w: %w", t.address, err, errdefs.ErrUnavailable)
	}
	return errgrpc.ToNative(err)
}

func (t *Task) create(ctx context.Context, opts runtime.CreateOpts) error {
	options := opts.TaskOptions
	if options == nil || options.GetValue() == nil {
		options = opts.RuntimeOptions
	}
	r := &taskAPI.CreateTaskRequest{
		ID: t.id, Bundle: t.bundle, Checkpoint: opts.Checkpoint,
		Stdin: opts.IO.Stdin, Stdout: opts.IO.Stdout, Stderr: opts.IO.Stderr, Terminal: opts.IO.Terminal,
		Options: typeurl.MarshalProto(options),
	}
	for _, m := range opts.Rootfs {
		r.Rootfs = append(r.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return t.ask(func(s taskAPI.TTRPCTaskService) error {
		_, err := s.Create(ctx, r)
		return err
	})
}

// Namespace is containerd's.
func (t *Task) Namespace() string { return t.namespace }

// PID is that of the container's init.
func (t *Task) PID(ctx context.Context) (pid uint32, err error) {
	err = t.ask(func(s taskAPI.TTRPCTaskService) error {
		res, err := s.Connect(ctx, &taskAPI.ConnectRequest{ID: t.id})
		pid = res.GetTaskPid()
		return err
	})
	return pid, t.missed(err)
}

// Pause freezes the container.
func (t *Task) Pause(ctx context.Context) error {
	return t.ask(func(s taskAPI.TTRPCTaskService) error {
		_, err := s.Pause(ctx, &taskAPI.PauseRequest{ID: t.id})
		return err
	})
}

// Resume thaws it.
func (t *Task) Resume(ctx context.Context) error {
	return t.ask(func(s taskAPI.TTRPCTaskService) error {
		_, err := s.Resume(ctx, &taskAPI.ResumeRequest{ID: t.id})
		return err
	})
}

// Exec makes a process that is not started yet.
func (t *Task) Exec(ctx context.Context, id string, opts runtime.ExecOpts) (runtime.ExecProcess, error) {
	if err := identifiers.Validate(id); err != nil {
		return nil, fmt.Errorf("exec ID %q: %w", id, err)
	}
	err := t.ask(func(s taskAPI.TTRPCTaskService) error {
		_, err := s.Exec(ctx, &taskAPI.ExecProcessRequest{
			ID: t.id, ExecID: id, Spec: opts.Spec,
			Stdin: opts.IO.Stdin, Stdout: opts.IO.Stdout, Stderr: opts.IO.Stderr, Terminal: opts.IO.Terminal,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return &process{t, t.id, id}, nil
}

// Pids lists the container's processes.
func (t *Task) Pids(ctx context.Context) (list []runtime.ProcessInfo, err error) {
	err = t.ask(func(s taskAPI.TTRPCTaskService) error {
		res, err := s.Pids(ctx, &taskAPI.PidsRequest{ID: t.id})
		for _, p := range res.GetProcesses() {
			info := runtime.ProcessInfo{Pid: p.Pid}
			if p.Info != nil { // a nil pointer in an interface would be none
				info.Info = p.Info
			}
			list = append(list, info)
		}
		return err
	})
	return list, err
}

// Checkpoint writes the container's state to path.
func (t *Task) Checkpoint(ctx context.Context, path string, options *anypb.Any) error {
	return t.ask(func(s taskAPI.TTRPCTaskService) error {
		_, err := s.Checkpoint(ctx, &taskAPI.CheckpointTaskRequest{ID: t.id, Path: path, Options: options})
		return err
	})
}

// Update sets resources of a container that runs.
func (t *Task) Update(ctx context.Context, resources *anypb.Any, annotations map[string]string) error {
	return t.ask(func(s taskAPI.TTRPCTaskService) error {
		_, err := s.Update(ctx, &taskAPI.UpdateTaskRequest{ID: t.id, Resources: resources, Annotations: annotations})
		return err
	})
}

// Process is one that Exec made.
func (t *Task) Process(ctx context.Context, id string) (runtime.ExecProcess, error) {
	p := &process{t, t.id, id}
	if _, err := p.State(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// Stats are the container's figures.
func (t *Task) Stats(ctx context.Context) (stats *anypb.Any, err error) {
	err = t.ask(func(s taskAPI.TTRPCTaskService) error {
		res, err := s.Stats(ctx, &taskAPI.StatsRequest{ID: t.id})
		stats = res.GetStats()
		return err
	})
	return stats, err
}
