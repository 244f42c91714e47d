// Command containerd-shim-berth-v1 is berth's supervisor: the processes that
// outlive the daemon.
//
//	containerd-shim-berth-v1 serve --state DIR --name NAME [--events SOCKET]
//	    create and watch containers, write their logs, hold their stdio
//	containerd-shim-berth-v1 hold --state DIR
//	    keep FIFOs open while the daemon is down, for shims of others
//	containerd-shim-berth-v1 pod-init
//	    be PID 1 of a PID namespace that a pod's containers share
//
// The daemon starts all of them; nobody else needs to. The supervisor executes
// this program again, as "init", for each process that it puts into a
// container, and containerd executes it to ask what the runtime can do and to
// tidy up after one that is gone. What it links is listed and tested
// (imports_test.go), for it stays in memory beside every daemon.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/opencontainers/runc/libcontainer/exeseal"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	_ "berth/internal/supervisor/entry" // is a container's init, and goes no further
	"berth/internal/supervisor/hold"
	"berth/internal/supervisor/podinit"
	"berth/internal/supervisor/serve"
)

const usage = `containerd-shim-berth-v1 is started by berth:
  containerd-shim-berth-v1 serve --state DIR --name NAME [--events SOCKET]
                                              create and watch containers
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
	case len(args) >= 2 && args[1] == "serve":
		return runServe(args[2:])
	case len(args) >= 2 && args[1] == "-info":
		return writeInfo(os.Stdout)
	case len(args) >= 2 && args[len(args)-1] == "start":
		return errors.New("this runtime is berth's own and is not started by others; ask berth for the container, or use runtime io.containerd.runc.v2")
	}
	fmt.Fprint(os.Stderr, usage)
	os.Exit(2)
	return nil
}

// settle makes the process small and independent of the daemon's session.
func settle(umask int) (context.Context, context.CancelFunc) {
	debug.SetGCPercent(25)
	unix.Umask(umask)
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	return signal.NotifyContext(context.Background(), syscall.SIGTERM)
}

// ready tells whoever started the process, by the end of its output.
func ready() {
	fmt.Println("ready")
	os.Stdout.Close()
	debug.FreeOSMemory()
}

// seal executes this program again from a sealed copy in memory. So a
// supervisor goes on with its own version when the file is replaced, no
// container can write to the program that enters it, and libcontainer need not
// see to that for each process.
func seal() error {
	if exeseal.IsSelfExeCloned() {
		// The name is that of the descriptor otherwise.
		return os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	st, err := self.Stat()
	if err != nil {
		return err
	}
	sealed, err := exeseal.CloneBinary(self, st.Size(), "supervisor", os.TempDir())
	if err != nil {
		return err
	}
	if !exeseal.IsCloned(sealed) { // no memfd; libcontainer makes its copies
		return sealed.Close()
	}
	return unix.Exec(fmt.Sprintf("/proc/self/fd/%d", sealed.Fd()), os.Args, os.Environ())
}

// runServe says on standard output that it is ready and closes it.
func runServe(args []string) error {
	if err := seal(); err != nil {
		return fmt.Errorf("copy of the program: %w", err)
	}
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	server := &serve.Server{Ready: ready}
	flags.StringVar(&server.State, "state", "", "the daemon's state directory")
	flags.StringVar(&server.Name, "name", "", "the supervisor's name")
	flags.StringVar(&server.Events, "events", "", "containerd's ttrpc socket")
	if err := flags.Parse(args); err != nil {
		return err
	}
	// Commands in containers have it, too, as with runc.
	ctx, stop := settle(0o022)
	defer stop()
	// libcontainer says what goes wrong through logrus.
	logrus.SetLevel(logrus.WarnLevel)
	logrus.SetFormatter(&logrus.TextFormatter{DisableColors: true})
	server.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	err := server.Run(ctx)
	if errors.Is(err, serve.ErrRunning) {
		return nil
	}
	return err
}

// runHold says on standard output that it is ready and closes it.
func runHold(state string) error {
	runtime.GOMAXPROCS(1)
	ctx, stop := settle(0o077)
	defer stop()
	server := &hold.Server{State: state, Ready: ready}
	err := server.Run(ctx)
	if errors.Is(err, hold.ErrRunning) {
		return nil
	}
	return err
}
