package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"
	"k8s.io/client-go/tools/remotecommand"
)

// A terminal is the user's while a container has it: raw, its size followed.
// Without a terminal (a test, a script) it does nothing.
type terminal struct {
	in      *os.File
	state   *term.State
	size    func() (width, height int, err error)
	winch   chan os.Signal
	done    chan struct{}
	first   sync.Once
	closing sync.Once
}

// openTerminal takes the terminal. With raw, keys such as Ctrl-C go to the
// container.
func openTerminal(in io.Reader, out io.Writer, raw bool) (*terminal, error) {
	t := &terminal{winch: make(chan os.Signal, 1), done: make(chan struct{})}
	if f, ok := out.(*os.File); ok && isTerminal(out) {
		t.size = func() (int, int, error) { return term.GetSize(int(f.Fd())) }
		signal.Notify(t.winch, syscall.SIGWINCH)
	}
	if f, ok := in.(*os.File); ok && raw && isTerminal(in) {
		state, err := term.MakeRaw(int(f.Fd()))
		if err != nil {
			return nil, fmt.Errorf("terminal: %w", err)
		}
		t.in, t.state = f, state
	}
	return t, nil
}

// close gives the terminal back as it was.
func (t *terminal) close() {
	t.closing.Do(func() {
		signal.Stop(t.winch)
		close(t.done)
		if t.state != nil {
			// There is nothing to do about a terminal that is gone.
			_ = term.Restore(int(t.in.Fd()), t.state)
		}
	})
}

// Next implements remotecommand.TerminalSizeQueue: the size at once, then
// whenever it has changed.
func (t *terminal) Next() *remotecommand.TerminalSize {
	if t.size == nil {
		return nil
	}
	now := false
	t.first.Do(func() { now = true })
	if !now {
		select {
		case <-t.done:
			return nil
		case <-t.winch:
		}
	}
	width, height, err := t.size()
	if err != nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: uint16(width), Height: uint16(height)}
}
