package engine

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestSmoke(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		t0 := time.Now()
		e, err := StartEmbedded(context.Background(), Options{Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "c.sock"),
			Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		if err != nil {
			t.Fatal(err)
		}
		t.Log("start", time.Since(t0))
		c, err := Connect(context.Background(), e.Address(), slog.Default())
		if err != nil {
			t.Fatal(err)
		}
		t.Log(c.Version(t.Context()))
		c.Close()
		t0 = time.Now()
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		t.Log("stop", time.Since(t0))
	}
}
