// Package joined is the embedded containerd's runtime for tasks that join a
// process which serves the Task API already, as berth's supervisor does:
// whoever makes the task names the address. All other tasks go to containerd's
// own task manager.
//
// The task manager would treat such a process as a shim of each container: a
// connection, a reader of its log and three goroutines a container, and once
// the process is gone every task of it is dead. Here tasks share one connection
// an address, which is made when it is first needed and again when it broke,
// and a task exists as long as the process at the address knows it.
//
// Invariants: a bundle <state>/<namespace>/<id> belongs to the task of its name
// in the table, which has it from its making on. The file "address" in it is
// written last; a bundle without one is removed at the next start. A task of
// which the address says that it is not there is dropped by the call that was
// told so.
//
// Everything may be called from any goroutine. No lock is held across a call.
package joined

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
)

const (
	addressFile = "address"
	specFile    = "config.json"
	// scheme opens the addresses of tasks that are for this runtime.
	scheme = "ttrpc+unix://"
)

// Runtime implements containerd's runtime.PlatformRuntime.
type Runtime struct {
	shims runtime.PlatformRuntime
	state string
	pool  pool

	mu    sync.RWMutex
	tasks map[key]*Task
}

// key is what a task is known by.
type key struct{ namespace, id string }

var _ runtime.PlatformRuntime = (*Runtime)(nil)

// New takes up the tasks whose bundles are below state, which is made. Tasks
// without an address of their own go to shims. Nothing is connected to yet.
func New(state string, shims runtime.PlatformRuntime) (*Runtime, error) {
	r := &Runtime{shims: shims, state: state, tasks: map[key]*Task{}}
	if err := os.MkdirAll(state, 0o711); err != nil {
		return nil, err
	}
	bundles, err := filepath.Glob(filepath.Join(state, "*", "*"))
	if err != nil {
		return nil, err
	}
	for _, bundle := range bundles {
		k := key{filepath.Base(filepath.Dir(bundle)), filepath.Base(bundle)}
		address, err := os.ReadFile(filepath.Join(bundle, addressFile))
		switch {
		case errors.Is(err, fs.ErrNotExist) || err == nil && len(address) == 0: // cut while it was made
			if err := os.RemoveAll(bundle); err != nil {
				return nil, err
			}
		case err != nil:
			return nil, err
		default:
			r.tasks[k] = r.newTask(k, string(address))
		}
	}
	return r, nil
}

// Close closes the connections. Tasks stay where they run.
func (r *Runtime) Close() error { return r.pool.close() }

// ID names the runtime as containerd's own does.
func (r *Runtime) ID() string { return r.shims.ID() }

// Create makes a task. One that the process at the address has already is
// joined.
func (r *Runtime) Create(ctx context.Context, id string, opts runtime.CreateOpts) (runtime.Task, error) {
	if !strings.HasPrefix(opts.Address, scheme) {
		return r.shims.Create(ctx, id, opts)
	}
	k, err := keyOf(ctx, id)
	if err != nil {
		return nil, err
	}
	if opts.Spec == nil {
		return nil, fmt.Errorf("task %s has no spec: %w", id, errdefs.ErrInvalidArgument)
	}
	t := r.newTask(k, opts.Address)
	if !r.add(k, t) {
		return nil, fmt.Errorf("task %s: %w", id, errdefs.ErrAlreadyExists)
	}
	if err := t.writeBundle(opts.Spec.GetValue()); err != nil {
		return nil, errors.Join(err, t.forget())
	}
	if err := t.create(ctx, opts); err != nil {
		return nil, errors.Join(err, t.forget())
	}
	return t, nil
}

func (r *Runtime) add(k key, t *Task) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.tasks[k]; ok {
		return false
	}
	r.tasks[k] = t
	return true
}

// Get returns a task. That of an address may be found gone when it is called.
func (r *Runtime) Get(ctx context.Context, id string) (runtime.Task, error) {
	k, err := keyOf(ctx, id)
	if err != nil {
		return nil, err
	}
	if t, ok := r.find(k); ok {
		return t, nil
	}
	return r.shims.Get(ctx, id)
}

// Tasks lists those of the context's namespace, or all.
func (r *Runtime) Tasks(ctx context.Context, all bool) ([]runtime.Task, error) {
	list, err := r.shims.Tasks(ctx, all)
	if err != nil {
		return nil, err
	}
	namespace := ""
	if !all {
		if namespace, err = namespaces.NamespaceRequired(ctx); err != nil {
			return nil, err
		}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for k, t := range r.tasks {
		if all || k.namespace == namespace {
			list = append(list, t)
		}
	}
	return list, nil
}

// Delete removes a task that does not run.
func (r *Runtime) Delete(ctx context.Context, id string) (*runtime.Exit, error) {
	k, err := keyOf(ctx, id)
	if err != nil {
		return nil, err
	}
	t, ok := r.find(k)
	if !ok {
		return r.shims.Delete(ctx, id)
	}
	exit, err := t.process.Delete(ctx)
	if err != nil {
		return nil, err
	}
	return exit, t.forget()
}

// PluginInfo is what containerd's own runtime says of a shim binary.
func (r *Runtime) PluginInfo(ctx context.Context, request any) (any, error) {
	if p, ok := r.shims.(interface {
		PluginInfo(context.Context, any) (any, error)
	}); ok {
		return p.PluginInfo(ctx, request)
	}
	return nil, fmt.Errorf("runtime info: %w", errdefs.ErrNotImplemented)
}

func (r *Runtime) find(k key) (*Task, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	t, ok := r.tasks[k]
	return t, ok
}

func keyOf(ctx context.Context, id string) (key, error) {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return key{}, err
	}
	if err := errors.Join(identifiers.Validate(id), identifiers.Validate(namespace)); err != nil {
		return key{}, fmt.Errorf("task %q: %w", id, err)
	}
	return key{namespace, id}, nil
}
