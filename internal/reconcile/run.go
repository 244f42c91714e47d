package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"berth/internal/record"
	"berth/internal/steps"
)

const (
	// atOnce bounds the actions under way, resumeAtOnce the takings up: these
	// are light, and one that hangs must not hold up others.
	atOnce, resumeAtOnce = 8, 64
	// actionTimeout bounds one action.
	actionTimeout = 3 * time.Minute
	// patience is how long the daemon's start waits, and the bound of the first
	// attempt at taking an object up.
	patience = 10 * time.Second
	// retryFirst and retryMost are the waits between further attempts.
	retryFirst, retryMost = time.Second, time.Minute
)

// Sandboxes are undone and taken up again; internal/sandbox implements it.
type Sandboxes interface {
	Undo(ctx context.Context, op, id string) error
	Resume(*record.Sandbox) error
	Strays() ([]string, error)
}

// Containers are undone and taken up again; internal/container implements it.
type Containers interface {
	Undo(ctx context.Context, op, id string) error
	Resume(context.Context, *record.Container) error
	Remove(ctx context.Context, id string) error
	Strays(context.Context) ([]string, error)
}

// Images are undone and swept; internal/image implements it.
type Images interface {
	Undo(op, object string) []steps.Step
	Sweep(context.Context) error
}

// Steps undo what was cut; internal/steps implements it.
type Steps interface {
	Undo(ctx context.Context, op, object string, steps ...steps.Step) error
}

// Options are the parts. All are required.
type Options struct {
	Store      *record.Store
	Sandboxes  Sandboxes
	Containers Containers
	Images     Images
	Steps      Steps
	Log        *slog.Logger
}

// A Reconciler does the work of one start.
type Reconciler struct {
	Options
	wg sync.WaitGroup
}

// Run looks, plans and applies. It returns when all is done, or after patience:
// what is slow goes on; Wait waits for that. ctx ends it all.
func Run(ctx context.Context, o Options) (*Reconciler, error) {
	r := &Reconciler{Options: o}
	facts, err := r.look(ctx)
	if err != nil {
		return nil, fmt.Errorf("reconcile: %w", err)
	}
	done := make(chan struct{})
	r.wg.Go(func() {
		defer close(done)
		r.do(ctx, Make(facts))
	})
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		r.Log.Warn("putting right what the last run left takes long; it goes on while calls are served")
	}
	return r, nil
}

// do carries a plan out. What cannot be taken up at once is tried on and on:
// nobody else would see a running container's end.
func (r *Reconciler) do(ctx context.Context, plan Plan) {
	for _, a := range r.all(ctx, plan.Resume, resumeAtOnce, patience) {
		r.wg.Go(func() { r.takeUpLate(ctx, a) })
	}
	for _, actions := range [][]Action{plan.Tidy, plan.Containers, plan.Sandboxes, plan.Images} {
		r.all(ctx, actions, atOnce, actionTimeout)
	}
	if err := steps.Guard(r.Log, func() error { return r.Images.Sweep(ctx) }); err != nil {
		r.Log.Error("sweep of images failed; it is tried again at the next start", "err", err)
	}
}

func (r *Reconciler) takeUpLate(ctx context.Context, a Action) {
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if r.one(ctx, a, actionTimeout) == nil {
			r.Log.Info("taken up late", string(a.Kind), a.ID)
			return
		}
	}
}

// Wait waits for what goes on.
func (r *Reconciler) Wait() { r.wg.Wait() }

func (r *Reconciler) look(ctx context.Context) (f Facts, err error) {
	ctx, cancel := context.WithTimeout(ctx, actionTimeout)
	defer cancel()
	f.Sandboxes, f.Containers = r.Store.Sandboxes.List(), r.Store.Containers.List()
	var errs [3]error
	f.Unfinished, errs[0] = r.Store.Unfinished(ctx)
	f.StraySandboxes, errs[1] = r.Sandboxes.Strays()
	f.StrayContainers, errs[2] = r.Containers.Strays(ctx)
	return f, errors.Join(errs[:]...)
}

// all does actions side by side and returns those that failed.
func (r *Reconciler) all(ctx context.Context, actions []Action, atOnce int, timeout time.Duration) (failed []Action) {
	var mu sync.Mutex // guards failed
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, a := range actions {
		group.Go(func() error {
			if r.one(ctx, a, timeout) != nil {
				mu.Lock()
				failed = append(failed, a)
				mu.Unlock()
			}
			return nil
		})
	}
	_ = group.Wait() // the actions report for themselves
	return failed
}

// one does an action and reports it. A panic in it is an error like any other.
func (r *Reconciler) one(ctx context.Context, a Action, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if a.Why != "" {
		r.Log.Info("putting right what the last run left", string(a.Kind), a.ID, "op", a.Undo, "why", a.Why)
	}
	err := steps.Guard(r.Log, func() error { return r.apply(ctx, a) }, string(a.Kind), a.ID, "op", a.Undo)
	if errdefs.IsNotFound(err) && a.Undo == "" { // removed meanwhile
		return nil
	}
	if err != nil {
		r.Log.Error("not put right; it is tried again when the object is removed or the daemon starts", string(a.Kind), a.ID, "op", a.Undo, "err", err)
	}
	return err
}

func (r *Reconciler) apply(ctx context.Context, a Action) error {
	switch {
	case a.Kind == Image:
		return r.Steps.Undo(ctx, a.Undo, a.ID, r.Images.Undo(a.Undo, a.ID)...)
	case a.Remove:
		return r.Containers.Remove(ctx, a.ID)
	case a.Kind == Sandbox && a.Undo != "":
		return r.Sandboxes.Undo(ctx, a.Undo, a.ID)
	case a.Kind == Sandbox:
		box, err := r.Store.Sandboxes.Get(a.ID)
		if err != nil || box.State != record.SandboxReady {
			return err
		}
		return r.Sandboxes.Resume(box)
	case a.Undo != "":
		return r.Containers.Undo(ctx, a.Undo, a.ID)
	}
	c, err := r.Store.Containers.Get(a.ID)
	if err != nil {
		return err
	}
	return r.Containers.Resume(ctx, c)
}
