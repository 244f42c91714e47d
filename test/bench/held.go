package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hold has both servers hold n idle pods at the same time and measures what
// they cost and how long questions about them take.
func (b *bench) hold(ctx context.Context, n int) (err error) {
	empty := map[*server]int64{}
	pods := map[*server][]*pod{}
	defer func() { err = errors.Join(err, b.release(context.WithoutCancel(ctx), n, pods)) }()
	err = b.alternate(ctx, 1, func(s *server) (err error) {
		if empty[s], err = s.memory(); err != nil {
			return err
		}
		pods[s], err = b.holdOn(ctx, s, n)
		return err
	})
	if err != nil {
		return err
	}
	pause(ctx, b.plan.heldSettle)
	if err := b.heldIdle(ctx, n); err != nil {
		return err
	}
	if err := b.heldMemory(n, empty, pods); err != nil {
		return err
	}
	if err := b.heldCalls(ctx, n, pods); err != nil {
		return err
	}
	return b.heldRestarts(ctx, n, pods)
}

// holdOn starts n pods. Those that fail are filed and not held.
func (b *bench) holdOn(ctx context.Context, s *server, n int) ([]*pod, error) {
	all := make([]*pod, n)
	began := time.Now()
	err := inParallel(ctx, n, func(ctx context.Context, i int) error {
		p, err := s.newPod(b.image, idleArgs)
		if err != nil {
			return err
		}
		if _, err := p.up(ctx); err != nil {
			if ctx.Err() == nil {
				b.results.fail(s.name, heldKey(n, heldUp), err)
			}
			return p.discard(context.WithoutCancel(ctx))
		}
		all[i] = p
		return nil
	})
	b.results.add(s.name, heldKey(n, heldUp), time.Since(began).Seconds())
	var pods []*pod
	for _, p := range all {
		if p != nil {
			pods = append(pods, p)
		}
	}
	return pods, err
}

// release takes all pods away; what fails is left to the end of the run.
func (b *bench) release(ctx context.Context, n int, pods map[*server][]*pod) error {
	for _, s := range b.servers {
		if len(pods[s]) == 0 {
			continue
		}
		began := time.Now()
		err := inParallel(ctx, len(pods[s]), func(ctx context.Context, i int) error {
			if _, err := pods[s][i].down(ctx); err != nil {
				b.results.fail(s.name, heldKey(n, heldDown), err)
			}
			return nil
		})
		if err != nil {
			return err
		}
		b.results.add(s.name, heldKey(n, heldDown), time.Since(began).Seconds())
	}
	return nil
}

const mebibyte = 1 << 20

func (b *bench) heldMemory(n int, empty map[*server]int64, pods map[*server][]*pod) error {
	for _, s := range b.servers {
		if len(pods[s]) == 0 {
			continue
		}
		total, err := s.memory()
		if err != nil {
			return err
		}
		each := func(bytes int64) float64 { return float64(bytes) / mebibyte / float64(len(pods[s])) }
		b.results.add(s.name, heldKey(n, heldMemory), each(total))
		b.results.add(s.name, heldKey(n, heldMemoryOfOne), each(total-empty[s]))
	}
	return nil
}

// heldIdle measures both over the same time, in which nobody calls.
func (b *bench) heldIdle(ctx context.Context, n int) error {
	before := map[*server]time.Duration{}
	began := time.Now()
	for _, s := range b.servers {
		var err error
		if before[s], err = s.cpu(false); err != nil {
			return err
		}
	}
	pause(ctx, b.plan.idle)
	for _, s := range b.servers {
		now, err := s.cpu(false)
		if err != nil {
			return err
		}
		b.results.add(s.name, heldKey(n, heldIdle), milliseconds(now-before[s])/time.Since(began).Seconds())
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// oneEntry is the answer to a question about one pod.
const oneEntry = -1

func sameID(want, have string, err error) error {
	if err == nil && want != have {
		err = fmt.Errorf("the answer is about %q, want %q", have, want)
	}
	return err
}

// A question is a call about held pods; its answer has one entry for each of
// them, or oneEntry.
type question struct {
	what   string
	rounds int
	ask    func(ctx context.Context, s *server, p *pod) (entries int, err error)
}

func (b *bench) questions() []question {
	return []question{
		{heldContainers, b.plan.lists, func(ctx context.Context, s *server, _ *pod) (int, error) {
			r, err := s.runtime.ListContainers(ctx, &cri.ListContainersRequest{})
			return len(r.GetContainers()), err
		}},
		{heldPods, b.plan.lists, func(ctx context.Context, s *server, _ *pod) (int, error) {
			r, err := s.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
			return len(r.GetItems()), err
		}},
		{heldStatus, b.plan.lists, func(ctx context.Context, s *server, p *pod) (int, error) {
			r, err := s.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: p.container})
			return oneEntry, sameID(p.container, r.GetStatus().GetId(), err)
		}},
		{heldPodStatus, b.plan.lists, func(ctx context.Context, s *server, p *pod) (int, error) {
			r, err := s.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
			return oneEntry, sameID(p.id, r.GetStatus().GetId(), err)
		}},
		{heldStats, b.plan.lists, func(ctx context.Context, s *server, _ *pod) (int, error) {
			r, err := s.runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
			return len(r.GetStats()), err
		}},
		{heldPodStats, b.plan.lists, func(ctx context.Context, s *server, _ *pod) (int, error) {
			r, err := s.runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
			return len(r.GetStats()), err
		}},
		{heldMetrics, b.plan.metrics, func(ctx context.Context, s *server, _ *pod) (int, error) {
			r, err := s.runtime.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{})
			return len(r.GetPodMetrics()), err
		}},
	}
}

// heldCalls asks each question in alternation; the first answer of each is not
// counted.
func (b *bench) heldCalls(ctx context.Context, n int, pods map[*server][]*pod) error {
	for _, q := range b.questions() {
		key := heldKey(n, q.what)
		if !b.only.MatchString(key) {
			continue
		}
		round := map[*server]int{}
		err := b.alternate(ctx, q.rounds+1, func(s *server) error {
			if len(pods[s]) == 0 {
				return nil
			}
			i := round[s]
			round[s]++
			if i == 0 && q.rounds == 1 {
				return nil // too slow to be asked for nothing
			}
			took, err := q.once(ctx, s, pods[s], i)
			switch {
			case ctx.Err() != nil || i == 0:
			case err != nil:
				b.results.fail(s.name, key, err)
			default:
				b.results.add(s.name, key, milliseconds(took))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (q question) once(ctx context.Context, s *server, pods []*pod, round int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	began := time.Now()
	entries, err := q.ask(ctx, s, pods[round%len(pods)])
	took := time.Since(began)
	if err == nil && entries != oneEntry && entries != len(pods) {
		err = fmt.Errorf("the answer has %d entries, want %d", entries, len(pods))
	}
	return took, err
}

// heldRestarts measures from SIGTERM until the next process is ready and lists
// every pod.
func (b *bench) heldRestarts(ctx context.Context, n int, pods map[*server][]*pod) error {
	key := heldKey(n, heldRestart)
	if !b.only.MatchString(key) {
		return nil
	}
	return b.alternate(ctx, b.plan.restarts, func(s *server) error {
		began := time.Now()
		if err := errors.Join(s.stop(), s.launch()); err != nil {
			return err
		}
		if err := s.waitFor(ctx, len(pods[s])); err != nil {
			if ctx.Err() != nil {
				return err
			}
			b.results.fail(s.name, key, err)
			return s.waitFor(ctx, 0)
		}
		b.results.add(s.name, key, milliseconds(time.Since(began)))
		return nil
	})
}
