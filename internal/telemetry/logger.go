// Package telemetry makes the daemon's logs and metrics.
//
// There is no global state: whoever is to log or to count is handed a
// *slog.Logger or a *Metrics. A nil *Metrics counts nothing, so parts can be
// used without one. Everything is safe for concurrent use, and nothing here
// runs in the background: objects are counted when metrics are fetched.
package telemetry

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/containerd/errdefs"
)

// NewLogger returns a logger that writes lines of a format ("text" or "json")
// to w, from a level up ("debug", "info", "warn" or "error").
func NewLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}
	l, ok := levels[level]
	if !ok {
		return nil, fmt.Errorf("log level %q is not one of debug, info, warn, error: %w", level, errdefs.ErrInvalidArgument)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("log format %q is not one of text, json: %w", format, errdefs.ErrInvalidArgument)
}
