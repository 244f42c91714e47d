package network

import (
	"io"
	"log/slog"
	"testing"
)

// BenchmarkAddDel measures one pod's ADD and DEL on the built-in network, with
// its plugins in process and as programs.
func BenchmarkAddDel(b *testing.B) {
	for name, inProcess := range map[string]bool{"in process": true, "programs": false} {
		b.Run(name, func(b *testing.B) { benchmarkAddDel(b, inProcess) })
	}
}

func benchmarkAddDel(b *testing.B, inProcess bool) {
	dir := b.TempDir()
	n, err := New(Options{
		ConfDir: dir + "/net.d", BinDirs: []string{plugins}, CacheDir: dir + "/cni",
		InProcess: inProcess,
		Default:   true, DefaultBridge: "bt9", DefaultSubnet: "10.88.90.0/24", Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := n.Close(); err != nil {
			b.Error(err)
		}
		removeBridges(b)
	}()
	p := newPod(b, dir, "bench")
	b.Run("add", func(b *testing.B) {
		for b.Loop() {
			if _, err := n.Add(b.Context(), p); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := n.Del(b.Context(), p); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("del", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			if _, err := n.Add(b.Context(), p); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if err := n.Del(b.Context(), p); err != nil {
				b.Fatal(err)
			}
		}
	})
}
