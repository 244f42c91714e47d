package stream

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"k8s.io/klog/v2"
)

// The Kubernetes packages log to klog, which is one for the process. What they
// have to say about a session its client is told too, so that all of it is for
// debugging.
var (
	klogTo   atomic.Pointer[slog.Logger]
	klogOnce sync.Once
)

// takeKlog directs klog to the Server that was made last.
func takeKlog(log *slog.Logger) {
	klogTo.Store(log)
	klogOnce.Do(func() { klog.SetSlogLogger(slog.New(debugOnly{})) })
}

// debugOnly is a handler that makes debug lines of all, and sends them to
// klogTo.
type debugOnly struct {
	// with are the attributes and groups that were added, in their order.
	with []func(slog.Handler) slog.Handler
}

func (debugOnly) Enabled(ctx context.Context, _ slog.Level) bool {
	return klogTo.Load().Enabled(ctx, slog.LevelDebug)
}

func (h debugOnly) Handle(ctx context.Context, r slog.Record) error {
	to := klogTo.Load().Handler()
	for _, with := range h.with {
		to = with(to)
	}
	r.Level = slog.LevelDebug
	return to.Handle(ctx, r)
}

func (h debugOnly) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.add(func(to slog.Handler) slog.Handler { return to.WithAttrs(attrs) })
}

func (h debugOnly) WithGroup(name string) slog.Handler {
	return h.add(func(to slog.Handler) slog.Handler { return to.WithGroup(name) })
}

func (h debugOnly) add(f func(slog.Handler) slog.Handler) slog.Handler {
	return debugOnly{append(h.with[:len(h.with):len(h.with)], f)}
}
