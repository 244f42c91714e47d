package engine

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/containerd/fifo"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// levelTrace is below debug: containerd's own debugging.
const levelTrace = slog.LevelDebug - 4

// isNoise tells what containerd warns of though it is as it should be.
func isNoise(e *logrus.Entry) bool {
	switch e.Message {
	case "failed check for fsverity support": // it does without
		return true
	case "copy shim log", // the shim has ended, and its log was closed first
		"failed to finish collection context": // a collection met the engine's end
		err, _ := e.Data[logrus.ErrorKey].(error)
		return errors.Is(err, os.ErrClosed) || errors.Is(err, fifo.ErrReadClosed)
	}
	return false
}

// toSlog maps the levels. What containerd tells at info is about its insides,
// which are ours to debug, not the operator's news.
func toSlog(e *logrus.Entry) slog.Level {
	switch l := e.Level; {
	case isNoise(e):
		return slog.LevelDebug
	case l <= logrus.ErrorLevel:
		return slog.LevelError
	case l == logrus.WarnLevel:
		return slog.LevelWarn
	case l == logrus.InfoLevel:
		return slog.LevelDebug
	default:
		return levelTrace
	}
}

// fromSlog is the most verbose of containerd's levels that l would show. Only
// at containerd's debug level are shims started with -debug.
func fromSlog(l *slog.Logger) logrus.Level {
	ctx := context.Background()
	switch {
	case l.Enabled(ctx, levelTrace):
		return logrus.DebugLevel
	case l.Enabled(ctx, slog.LevelDebug):
		return logrus.InfoLevel
	case l.Enabled(ctx, slog.LevelWarn):
		return logrus.WarnLevel
	default:
		return logrus.ErrorLevel
	}
}

// forward is a logrus hook that hands entries to a slog.Logger.
type forward struct{ to *atomic.Pointer[slog.Logger] }

func (forward) Levels() []logrus.Level { return logrus.AllLevels }

func (f forward) Fire(e *logrus.Entry) error {
	to := f.to.Load()
	if to == nil {
		return nil
	}
	keys := make([]string, 0, len(e.Data))
	for k := range e.Data {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	attrs := make([]slog.Attr, 0, len(keys))
	for _, k := range keys {
		name := k
		if k == logrus.ErrorKey {
			name = "err"
		}
		attrs = append(attrs, slog.Any(name, e.Data[k]))
	}
	to.LogAttrs(context.Background(), toSlog(e), e.Message, attrs...)
	return nil
}

// silent formats nothing: the hook has seen the entry.
type silent struct{}

func (silent) Format(*logrus.Entry) ([]byte, error) { return nil, nil }

// forwardTo sends what l logs to the logger in to. Fatal does not end the
// process: only the daemon decides that.
func forwardTo(l *logrus.Logger, to *atomic.Pointer[slog.Logger]) {
	l.SetOutput(io.Discard)
	l.SetFormatter(silent{})
	l.ExitFunc = func(int) {}
	l.AddHook(forward{to})
}

// containerd logs to the logger of a context where there is one, and to the
// process's one elsewhere.
var (
	processLog  atomic.Pointer[slog.Logger]
	processOnce sync.Once
)

// logContext gives containerd's log lines to o.Log.
func (o *Options) logContext(ctx context.Context) context.Context {
	logger := o.Log.With("part", "containerd")
	processLog.Store(logger)
	processOnce.Do(func() { forwardTo(log.L.Logger, &processLog) })
	log.L.Logger.SetLevel(fromSlog(logger))

	own := logrus.New()
	own.SetLevel(fromSlog(logger))
	to := &atomic.Pointer[slog.Logger]{}
	to.Store(logger)
	forwardTo(own, to)
	return log.WithLogger(ctx, logrus.NewEntry(own))
}
