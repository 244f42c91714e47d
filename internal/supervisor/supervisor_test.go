package supervisor

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// binary is containerd-shim-berth-v1, built by TestMain as the Makefile does.
var binary string

func TestMain(m *testing.M) {
	if state := os.Getenv("BERTH_HOLD_DAEMON"); state != "" {
		daemon(state)
	}
	dir, err := os.MkdirTemp("", "berth-supervisor-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // a pod's init executes the binary as another user
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "containerd-shim-berth-v1")
	build := exec.Command("go", "build", "-trimpath", "-tags", "seccomp netgo osusergo no_grpc",
		"-ldflags=-s -w -linkmode external -extldflags -static", "-o", binary, "berth/cmd/containerd-shim-berth-v1")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n%s", build, err, out)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

func testLog(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// within waits for a condition that another process brings about.
func within(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 15 seconds: %s", what)
		}
	}
}
