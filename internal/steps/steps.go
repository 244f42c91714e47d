// Package steps runs a mutation as an ordered list of named steps, each with a
// do and an undo.
//
// A step that fails, or panics, undoes itself and the steps before it, last first. What is
// under way is journaled, so that after a crash the reconciler knows which
// object was left half made; it undoes with the very same functions. That asks
// one thing of every step: Undo is idempotent and knows what to undo from the
// object's ID alone, whether Do ran wholly, in part, or not at all.
//
// Each step is a failpoint by its name, before and after its Do (see
// failpoint.go), so a crash suite walks every step without being told.
//
// A Runner is safe for concurrent use. It takes no lock: who may change an
// object at one time is decided by Slots, and callers that ask for the same
// work at one time share it through Flights.
package steps

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// undoTimeout bounds the undoing of one step. Undo runs detached from the
// caller, who may be gone.
const undoTimeout = 30 * time.Second

// A Step is one named part of a mutation.
type Step struct {
	// Name is unique within its operation, in the field's terms ("network").
	Name string
	// Do makes the step's effect.
	Do func(context.Context) error
	// Undo takes the effect back. It is idempotent, and nil where Do has no
	// effect that a retry or the removal of the object would not see to.
	Undo func(context.Context) error
}

// Journal keeps what is under way. Both calls are durable against a killed
// process when they return.
type Journal interface {
	// Begin notes that step of op on object is about to be done; it replaces
	// the note of the step before it.
	Begin(op, object, step string) error
	// End forgets op on object. Ending what was never begun is no error.
	End(op, object string) error
}

// Options configure a Runner.
type Options struct {
	// Journal is required.
	Journal Journal
	// Log is required.
	Log *slog.Logger
	// Observe, where set, is told each step's duration and error.
	Observe func(op, step string, took time.Duration, err error)
	// Failpoints, where set, make steps fail on purpose.
	Failpoints *Failpoints
}

// A Runner runs operations.
type Runner struct{ opts Options }

// New returns a Runner.
func New(opts Options) *Runner { return &Runner{opts} }

// Run does the steps of op on object in their order. The error of the step
// that failed is returned with its name; an undo that failed is joined to it,
// and the journal keeps the entry for the reconciler.
//
// Where the journal cannot be written, as on a full disk, a step is not begun:
// after a crash nobody would undo it. An operation whose steps have no undo
// goes on without, for its retry is all that finishes it.
func (r *Runner) Run(ctx context.Context, op, object string, steps ...Step) error {
	undoes := slices.ContainsFunc(steps, func(s Step) bool { return s.Undo != nil })
	for i, step := range steps {
		err := ctx.Err()
		if err == nil {
			err = r.begin(op, object, step.Name, undoes)
		}
		if err == nil {
			err = r.do(ctx, op, object, step)
		}
		if err == nil {
			continue
		}
		err = fmt.Errorf("%s %s: step %s: %w", op, object, step.Name, err)
		if undone := r.undo(ctx, op, object, steps[:i+1]); undone != nil {
			return errors.Join(err, undone)
		}
		r.end(op, object)
		return err
	}
	r.end(op, object)
	return nil
}

// begin notes a step in the journal.
func (r *Runner) begin(op, object, step string, undoes bool) error {
	err := r.opts.Journal.Begin(op, object, step)
	if err != nil && !undoes {
		r.opts.Log.Error("journal not written; the operation goes on without, since it has nothing to undo", "op", op, "object", object, "step", step, "err", err)
		return nil
	}
	return err
}

// end forgets what is done, or undone. An entry that stays is looked at by the
// reconciler, which finds nothing to undo, or undoes once more.
func (r *Runner) end(op, object string) {
	if err := r.opts.Journal.End(op, object); err != nil {
		r.opts.Log.Error("journal entry not removed; the next start looks at it", "op", op, "object", object, "err", err)
	}
}

// Undo takes all the steps back, last first, as if the last of them had
// failed. The reconciler calls it for what a crash cut.
func (r *Runner) Undo(ctx context.Context, op, object string, steps ...Step) error {
	if err := r.undo(ctx, op, object, steps); err != nil {
		return err
	}
	return r.opts.Journal.End(op, object)
}

func (r *Runner) do(ctx context.Context, op, object string, step Step) (err error) {
	start := time.Now()
	defer func() {
		took := time.Since(start)
		if r.opts.Observe != nil {
			r.opts.Observe(op, step.Name, took, err)
		}
		r.opts.Log.Debug("step done", "op", op, "object", object, "step", step.Name, "took", took, "err", err)
	}()
	return Guard(r.opts.Log, func() error {
		if err := r.opts.Failpoints.hit(ctx, op, step.Name, before); err != nil {
			return err
		}
		if err := step.Do(ctx); err != nil {
			return err
		}
		return r.opts.Failpoints.hit(ctx, op, step.Name, after)
	}, "op", op, "object", object, "step", step.Name)
}

// undo ends with the first failure, or panic: the steps before it hold what trying again
// needs, as the namespace for a network, and the record, without which nobody
// would.
func (r *Runner) undo(ctx context.Context, op, object string, steps []Step) error {
	for i := len(steps) - 1; i >= 0; i-- {
		step := steps[i]
		if step.Undo == nil {
			continue
		}
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		err := Guard(r.opts.Log, func() error { return step.Undo(uctx) }, "op", op, "object", object, "undo of step", step.Name)
		cancel()
		if err != nil {
			r.opts.Log.Error("step not undone; it is tried again when the object is removed or the daemon starts",
				"op", op, "object", object, "step", step.Name, "err", err)
			return fmt.Errorf("%s %s: undo step %s: %w", op, object, step.Name, err)
		}
	}
	return nil
}
