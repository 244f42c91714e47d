package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"berth/internal/testkit"
	"berth/internal/testkit/registrytest"
)

// options are the command line's.
type options struct {
	quick   bool
	only    *regexp.Regexp
	servers []string
	rounds  float64
	bin     string
	output  string
}

// A plan is how often each thing is done.
type plan struct {
	lifecycles                         int
	batches, batch                     int // of lifecycles by workers at once
	held                               []int
	lists, metrics                     int
	restarts                           int
	idle                               time.Duration
	execs                              int
	execBatches, execBatch             int
	logs, logMiB                       int
	pulls, counts                      int
	heldSettle, traceSettle, traceRest time.Duration
}

func quickPlan() plan {
	return plan{
		lifecycles: 10, batches: 2, batch: 16, held: []int{50}, lists: 15, metrics: 2, restarts: 2,
		idle: 5 * time.Second, execs: 20, execBatches: 2, execBatch: 40, logs: 2, logMiB: 32, pulls: 2, counts: 1,
		heldSettle: time.Second, traceSettle: 300 * time.Millisecond, traceRest: 2 * time.Second,
	}
}

func fullPlan() plan {
	return plan{
		lifecycles: 100, batches: 5, batch: 64, held: []int{50, 300}, lists: 60, metrics: 3, restarts: 5,
		idle: 30 * time.Second, execs: 200, execBatches: 5, execBatch: 160, logs: 5, logMiB: 256, pulls: 5, counts: 3,
		heldSettle: 5 * time.Second, traceSettle: time.Second, traceRest: 5 * time.Second,
	}
}

// scaled multiplies what is done often by f, for runs while developing.
func (p plan) scaled(f float64) plan {
	for _, n := range []*int{&p.lifecycles, &p.batches, &p.lists, &p.metrics, &p.restarts, &p.execs, &p.execBatches, &p.logs, &p.pulls, &p.counts} {
		*n = max(1, int(float64(*n)*f+0.5))
	}
	return p
}

// workers is how many clients call at once where a figure says so.
const workers = 8

// A bench is one run.
type bench struct {
	options
	plan
	workspace *testkit.Workspace
	registry  *registrytest.Registry
	servers   []*server
	results   *results
	figures   []figure
	image     string // of workloads
	progress  io.Writer
}

// A group measures figures that are measured together.
type group struct {
	name string
	keys []string
	run  func(context.Context) error
}

func (b *bench) groups() []group {
	all := []group{
		{"one lifecycle after another", []string{keyRun, keyCreate, keyStart, keyReady, keyStop, keyRemove, keyCPU}, b.lifecycles1},
		{"lifecycles by 8 workers", []string{keyRate, keyMachine}, b.lifecycles8},
		{"ExecSync", []string{keyExec, keyExecRate}, b.exec},
		{"log", []string{keyLogRate, keyLogCPU}, b.logs1},
		{"pull of large layers", []string{keyLarge}, func(ctx context.Context) error { return b.pull(ctx, keyLarge, largeImage) }},
		{"pull of many files", []string{keySmall}, func(ctx context.Context) error { return b.pull(ctx, keySmall, smallFilesImage) }},
		{"counts", []string{keySyncUp, keySyncDown, keyExecUp, keyExecDown}, b.counted},
	}
	for _, n := range b.held {
		var keys []string
		for _, f := range heldFigures(n) {
			keys = append(keys, f.key)
		}
		all = append(all, group{fmt.Sprintf("%d held pods", n), keys, func(ctx context.Context) error { return b.hold(ctx, n) }})
	}
	return all
}

// measure runs every group of which a figure is wanted. A group that cannot go
// on is reported; the others run all the same.
func (b *bench) measure(ctx context.Context) error {
	var errs []error
	for _, g := range b.groups() {
		if !slices.ContainsFunc(g.keys, b.only.MatchString) || ctx.Err() != nil {
			continue
		}
		began := time.Now()
		fmt.Fprintf(b.progress, "%s ...", g.name)
		err := g.run(ctx)
		fmt.Fprintf(b.progress, " %.1f s\n", time.Since(began).Seconds())
		if err != nil && ctx.Err() == nil {
			errs = append(errs, fmt.Errorf("%s: %w", g.name, err))
		}
	}
	return errors.Join(append(errs, context.Cause(ctx))...)
}

// alternate calls f for each server in turn, again and again.
func (b *bench) alternate(ctx context.Context, rounds int, f func(s *server) error) error {
	for range rounds {
		for _, s := range b.servers {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := f(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// inParallel does n things with all workers.
func inParallel(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	var group errgroup.Group
	group.SetLimit(workers)
	for i := range n {
		group.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return f(ctx, i)
		})
	}
	return group.Wait()
}

// addTook files how long calls took.
func (b *bench) addTook(s *server, t took) {
	for key, d := range t {
		b.results.add(s.name, key, milliseconds(d))
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
