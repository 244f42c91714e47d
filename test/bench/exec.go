package main

import (
	"context"
	"fmt"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// exec times executions in one running container, then by all workers.
func (b *bench) exec(ctx context.Context) error {
	return b.onBoth(ctx, func(pods map[*server]*pod) error {
		err := b.alternate(ctx, b.plan.execs, func(s *server) error {
			began := time.Now()
			if err := pods[s].execTrue(ctx); err != nil {
				b.results.fail(s.name, keyExec, err)
				return nil
			}
			b.results.add(s.name, keyExec, milliseconds(time.Since(began)))
			return nil
		})
		if err != nil {
			return err
		}
		return b.alternate(ctx, b.plan.execBatches, func(s *server) error {
			began := time.Now()
			done := make([]bool, b.plan.execBatch)
			err := inParallel(ctx, len(done), func(ctx context.Context, i int) error {
				if err := pods[s].execTrue(ctx); err != nil {
					b.results.fail(s.name, keyExecRate, err)
					return nil
				}
				done[i] = true
				return nil
			})
			if n := count(done); n > 0 {
				b.results.add(s.name, keyExecRate, float64(n)/time.Since(began).Seconds())
			}
			return err
		})
	})
}

func (p *pod) execTrue(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := p.s.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"/bin/true"}, Timeout: 30})
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Stderr)
	}
	return err
}

// onBoth has an idle pod on each server while use runs.
func (b *bench) onBoth(ctx context.Context, use func(map[*server]*pod) error) error {
	pods := map[*server]*pod{}
	var nest func(rest []*server) error
	nest = func(rest []*server) error {
		if len(rest) == 0 {
			return use(pods)
		}
		return b.with(ctx, rest[0], idleArgs, func(p *pod) error {
			pods[rest[0]] = p
			return nest(rest[1:])
		})
	}
	return nest(b.servers)
}
