package record

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

func BenchmarkBegin(b *testing.B) {
	s := openBench(b)
	for b.Loop() {
		if err := s.Begin("Op", "x", "s"); err != nil {
			b.Fatal(err)
		}
	}
}

// Sixteen writers, as when a node's pods start at once: the journal and both
// tables, changed side by side.
func BenchmarkSixteenWriters(b *testing.B) {
	const writers = 16
	s := openBench(b)
	for w := range writers {
		if err := s.Sandboxes.Put(sandbox(fmt.Sprint(w))); err != nil {
			b.Fatal(err)
		}
	}
	took := make([][]time.Duration, writers)
	b.ResetTimer()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			id := fmt.Sprint(w)
			for i := range b.N {
				start := time.Now()
				err := s.Begin("Op", id, "s")
				took[w] = append(took[w], time.Since(start))
				if err == nil && i%4 == 0 {
					_, err = s.Sandboxes.Update(id, func(box *Sandbox) { box.IPs = []string{id} })
				}
				if err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	all := slices.Sorted(slices.Values(slices.Concat(took...)))
	for name, at := range map[string]int{"p50-µs": len(all) / 2, "p99-µs": len(all) * 99 / 100, "max-µs": len(all) - 1} {
		b.ReportMetric(float64(all[at].Nanoseconds())/1000, name)
	}
}

func openBench(b *testing.B) *Store {
	b.Helper()
	s, err := Open(b.Context(), filepath.Join(b.TempDir(), "records.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	return s
}
