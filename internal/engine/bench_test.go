package engine

import (
	"fmt"
	"log/slog"
	"os"
	"testing"
)

// To count what a mutation syncs:
//
//	go test -c -o /tmp/t ./internal/engine && cd internal/engine &&
//	strace -fc -e trace=fsync,fdatasync /tmp/t -test.run '^$' -test.bench Prepare -test.benchtime 100x

func benchEngine(b *testing.B) *Engine {
	b.Helper()
	dir, err := os.MkdirTemp("", "be")
	if err != nil {
		b.Fatal(err)
	}
	e, err := StartEmbedded(b.Context(), optionsIn(dir, slog.New(slog.DiscardHandler)))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := e.Close(); err != nil {
			b.Error(err)
		}
		os.RemoveAll(dir)
	})
	return e
}

// BenchmarkStart starts and closes an engine on a root that has been used.
func BenchmarkStart(b *testing.B) {
	dir := b.TempDir()
	log := slog.New(slog.DiscardHandler)
	for b.Loop() {
		e, err := StartEmbedded(b.Context(), optionsIn(dir, log))
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := e.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkPrepare(b *testing.B) {
	e := benchEngine(b)
	ctx, s := e.Context(b.Context()), e.Client().SnapshotService("overlayfs")
	n := 0
	for b.Loop() {
		if _, err := s.Prepare(ctx, fmt.Sprint("bench-", n), "", keep()); err != nil {
			b.Fatal(err)
		}
		n++
	}
}

func BenchmarkPrepareRemove(b *testing.B) {
	e := benchEngine(b)
	ctx, s := e.Context(b.Context()), e.Client().SnapshotService("overlayfs")
	for b.Loop() {
		if _, err := s.Prepare(ctx, "bench", "", keep()); err != nil {
			b.Fatal(err)
		}
		if err := s.Remove(ctx, "bench"); err != nil {
			b.Fatal(err)
		}
	}
}
