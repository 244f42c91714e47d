// Command containerd-shim-berth-v1 is berth's supervisor: the small processes
// that outlive the daemon.
//
//	containerd-shim-berth-v1 hold --state DIR
//	    keep FIFOs open while the daemon is down
//	containerd-shim-berth-v1 pod-init
//	    be PID 1 of a PID namespace that a pod's containers share
//
// The daemon starts both; nobody else needs to. What it links is listed and
// tested (imports_test.go), for it stays in memory beside every daemon.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/internal/supervisor/hold"
	"berth/internal/supervisor/podinit"
)

const usage = `containerd-shim-berth-v1 is started by berth:
  containerd-shim-berth-v1 hold --state DIR   keep FIFOs open while the daemon is down
  containerd-shim-berth-v1 pod-init [ID]      be PID 1 of a pod's PID namespace
`

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "containerd-shim-berth-v1:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 4 && args[1] == "hold" && args[2] == "--state" && filepath.IsAbs(args[3]):
		return runHold(args[3])
	case len(args) >= 2 && args[1] == podinit.Name:
		return podinit.Setup(args[2:])
	}
	fmt.Fprint(os.Stderr, usage)
	os.Exit(2)
	return nil
}

// runHold says on standard output that it is ready and closes it.
func runHold(state string) error {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(25)
	unix.Umask(0o077)
	// A daemon that goes down takes no part of its session along.
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	server := &hold.Server{State: state, Ready: func() {
		fmt.Println("ready")
		os.Stdout.Close()
		debug.FreeOSMemory()
	}}
	err := server.Run(ctx)
	if errors.Is(err, hold.ErrRunning) {
		return nil
	}
	return err
}
