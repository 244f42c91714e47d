package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

var idleArgs = []string{"idle"}

// lifecycles1 times the calls of one pod after another. A lifecycle's CPU is
// what the server's cgroup used from its beginning to that of the server's
// next, so that work put off is not lost.
func (b *bench) lifecycles1(ctx context.Context) error {
	before := map[*server]time.Duration{}
	err := b.alternate(ctx, b.plan.lifecycles, func(s *server) error {
		if err := b.addCPU(s, before); err != nil {
			return err
		}
		return b.lifecycle1(ctx, s)
	})
	if err != nil {
		return err
	}
	for _, s := range b.servers {
		if err := b.addCPU(s, before); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) addCPU(s *server, before map[*server]time.Duration) error {
	now, err := s.cpu(true)
	if err != nil {
		return err
	}
	if last, ok := before[s]; ok {
		b.results.add(s.name, keyCPU, milliseconds(now-last))
	}
	before[s] = now
	return nil
}

// lifecycle1 files each call's time, or that it failed.
func (b *bench) lifecycle1(ctx context.Context, s *server) error {
	p, err := s.newPod(b.image, idleArgs)
	if err != nil {
		return err
	}
	up, err := p.up(ctx)
	if err != nil {
		return b.failStep(ctx, p, up, err)
	}
	b.addTook(s, up)
	down, err := p.down(ctx)
	if err != nil {
		return b.failStep(ctx, p, down, err)
	}
	b.addTook(s, down)
	return nil
}

// failStep files a lifecycle that broke off, and takes the pod away.
func (b *bench) failStep(ctx context.Context, p *pod, t took, err error) error {
	if ctx.Err() == nil {
		step := new(stepError)
		if !errors.As(err, &step) {
			return err
		}
		delete(t, keyReady)
		delete(t, step.key)
		b.addTook(p.s, t)
		b.results.fail(p.s.name, step.key, step.err)
		if step.key == keyRun || step.key == keyCreate || step.key == keyStart {
			b.results.fail(p.s.name, keyReady, step)
		}
	}
	if err := p.discard(context.WithoutCancel(ctx)); err != nil {
		fmt.Fprintf(b.progress, " [%s: a pod cannot be removed: %v]", p.s.name, err)
	}
	return nil
}

// lifecycles8 has all workers make lifecycles; a batch is a sample.
func (b *bench) lifecycles8(ctx context.Context) error {
	return b.alternate(ctx, b.plan.batches, func(s *server) error {
		busy, err := machineCPU()
		if err != nil {
			return err
		}
		began := time.Now()
		done := make([]bool, b.plan.batch)
		err = inParallel(ctx, b.plan.batch, func(ctx context.Context, i int) error {
			err := b.with(ctx, s, idleArgs, func(*pod) error { return nil })
			if err != nil && ctx.Err() == nil {
				b.results.fail(s.name, keyRate, err)
			}
			done[i] = err == nil
			return nil
		})
		if err != nil {
			return err
		}
		took := time.Since(began)
		after, err := machineCPU()
		if err != nil {
			return err
		}
		if n := count(done); n > 0 {
			b.results.add(s.name, keyRate, float64(n)/took.Seconds())
			b.results.add(s.name, keyMachine, milliseconds(after-busy)/float64(n))
		}
		return nil
	})
}

func count(done []bool) int {
	n := 0
	for _, d := range done {
		if d {
			n++
		}
	}
	return n
}
