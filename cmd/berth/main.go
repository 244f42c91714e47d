// Command berth is a CRI server and its command line.
//
// `berth serve` is the daemon. Every other command is a client of its socket
// (or of another CRI server's) and keeps no state: it lists, resolves what the
// user typed to one object, and calls. One file a command; what they share is
// in root.go (global flags, connection), output.go (tables, JSON, YAML) and
// complete.go (completion of names).
//
// Errors are returned, never printed by a command: main prints each once.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

// exitInterrupted is the exit code after Ctrl-C, as shells give it.
const exitInterrupted = 130

func main() {
	// What the Kubernetes libraries log is no message to the user.
	klog.SetLogger(logr.Discard())
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is main with its surroundings given.
func run(args []string, in io.Reader, out, errOut io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first Ctrl-C ends the command in order; another ends it at once.
	context.AfterFunc(ctx, stop)
	root := newRootCommand(in, out, errOut)
	root.SetArgs(args)
	return exitCode(errOut, root.ExecuteContext(ctx), ctx.Err() != nil)
}

// An exitError ends the program with a code and, without text, in silence: the
// code of a command run in a container, or of checks that failed.
type exitError struct {
	code int
	text string
}

// Error implements error.
func (e *exitError) Error() string { return e.text }

// exitCode prints the error, if there is one to print, and gives the code.
func exitCode(errOut io.Writer, err error, interrupted bool) int {
	var exit *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if exit.text != "" {
			fmt.Fprintln(errOut, "berth: "+exit.text)
		}
		return exit.code
	case errors.Is(err, syscall.EPIPE):
		return 0 // the reader has seen enough
	case interrupted && isCanceled(err):
		return exitInterrupted
	}
	fmt.Fprintln(errOut, "berth: "+strings.TrimSuffix(err.Error(), "\n"))
	return 1
}
