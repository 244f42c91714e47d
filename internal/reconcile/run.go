package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"berth/internal/record"
	"berth/internal/steps"
)

const (
	// atOnce bounds the actions under way.
	atOnce = 8
	// actionTimeout bounds one action.
	actionTimeout = 3 * time.Minute
	// patience is how long the daemon's start waits for what may be slow.
	patience = 10 * time.Second
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

// Run looks, plans and applies. It returns when all that was to be taken up is
// and the rest is done, or is slow and goes on; Wait waits for that. ctx ends
// it all.
func Run(ctx context.Context, o Options) (*Reconciler, error) {
	r := &Reconciler{Options: o}
	facts, err := r.look(ctx)
	if err != nil {
		return nil, fmt.Errorf("reconcile: %w", err)
	}
	plan := Make(facts)
	r.all(ctx, plan.Resume)
	done := make(chan struct{})
	r.wg.Go(func() {
		defer close(done)
		r.all(ctx, plan.Containers)
		r.all(ctx, plan.Sandboxes)
		r.all(ctx, plan.Images)
		if err := r.Images.Sweep(ctx); err != nil {
			r.Log.Error("sweep of images failed; it is tried again at the next start", "err", err)
		}
	})
	select {
	case <-done:
	case <-time.After(patience):
		r.Log.Warn("putting right what the last run left takes long; it goes on while calls are served")
	}
	return r, nil
}

// Wait waits for what goes on.
func (r *Reconciler) Wait() { r.wg.Wait() }

func (r *Reconciler) look(ctx context.Context) (f Facts, err error) {
	f.Sandboxes, f.Containers = r.Store.Sandboxes.List(), r.Store.Containers.List()
	var errs [3]error
	f.Unfinished, errs[0] = r.Store.Unfinished(ctx)
	f.StraySandboxes, errs[1] = r.Sandboxes.Strays()
	f.StrayContainers, errs[2] = r.Containers.Strays(ctx)
	return f, errors.Join(errs[:]...)
}

func (r *Reconciler) all(ctx context.Context, actions []Action) {
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, a := range actions {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, actionTimeout)
			defer cancel()
			if a.Why != "" {
				r.Log.Info("putting right what the last run left", string(a.Kind), a.ID, "op", a.Undo, "why", a.Why)
			}
			if err := r.apply(ctx, a); err != nil {
				r.Log.Error("not put right; it is tried again when the object is removed or the daemon starts", string(a.Kind), a.ID, "op", a.Undo, "err", err)
			}
			return nil
		})
	}
	_ = group.Wait() // the actions report for themselves
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
		if err != nil {
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
