package sandbox

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/record"
)

// slow are containers that take until they are let go.
type slow struct {
	begun chan struct{}
	let   chan struct{}
	calls atomic.Int32
}

func (c *slow) StopAll(ctx context.Context, _ string) error {
	c.calls.Add(1)
	return c.wait(ctx)
}

func (c *slow) RemoveAll(ctx context.Context, _ string) error {
	c.calls.Add(1)
	return c.wait(ctx)
}

func (c *slow) wait(ctx context.Context) error {
	c.begun <- struct{}{}
	select {
	case <-c.let:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

type unheard struct{}

func (unheard) Publish(runtime.ContainerEventType, string, *record.Sandbox) {}

func TestACallerThatGivesUpStopsNothing(t *testing.T) {
	for _, tc := range []struct {
		name   string
		before record.SandboxState
		do     func(s *Service, ctx context.Context) error
	}{
		{"stop", record.SandboxReady, func(s *Service, ctx context.Context) error { return s.Stop(ctx, "pod") }},
		{"remove", record.SandboxStopped, func(s *Service, ctx context.Context) error { return s.Remove(ctx, "pod") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &slow{begun: make(chan struct{}, 9), let: make(chan struct{})}
			s := newService(t, func(o *Options) { o.Containers, o.Events = c, unheard{} })
			put(t, s, "pod", "")
			_, err := s.Store.Sandboxes.Update("pod", func(b *record.Sandbox) {
				b.State = tc.before
				b.Config.Linux.SecurityContext = &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE}}
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			gaveUp, retry := make(chan error, 1), make(chan error, 1)
			go func() { gaveUp <- tc.do(s, ctx) }()
			<-c.begun
			cancel()
			if err := <-gaveUp; !errors.Is(err, context.Canceled) {
				t.Errorf("who gave up: %v", err)
			}
			go func() { retry <- tc.do(s, t.Context()) }()
			close(c.let)
			if err := <-retry; err != nil {
				t.Errorf("the retry: %v", err)
			}
			if n := c.calls.Load(); n != 1 {
				t.Errorf("the work was done %d times", n)
			}
		})
	}
}
