package logs

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"berth/internal/testkit"

	"github.com/containerd/errdefs"
)

func (l *IO) attached() int {
	l.clients.mu.Lock()
	defer l.clients.mu.Unlock()
	return len(l.clients.list)
}

// attach attaches in a goroutine and waits until it is seen.
func attach(t *testing.T, ctx context.Context, l *IO, o AttachOptions) <-chan error {
	t.Helper()
	before, done := l.attached(), make(chan error, 1)
	go func() { done <- l.Attach(ctx, o) }()
	within(t, "client", func() bool { return l.attached() > before || len(done) > 0 })
	return done
}

func wait(t *testing.T, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("attach does not return")
		return nil
	}
}

// stdinOf reads the container's stdin as the shim does, which has a write end
// too until CloseIO.
func stdinOf(t *testing.T, l *IO) (got *testkit.Buffer, closeIO func() error, ended <-chan struct{}) {
	t.Helper()
	path := l.Config().Stdin
	keeper, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	got = &testkit.Buffer{}
	end := make(chan struct{})
	go func() {
		defer close(end)
		io.Copy(got, r)
		r.Close()
	}()
	t.Cleanup(func() { keeper.Close(); <-end })
	return got, keeper.Close, end
}

func TestAttachOutput(t *testing.T) {
	l := open(t, options(t))
	s := startShim(t, l.Config())
	l.Running()
	s.write(stdout, "before\n")
	within(t, "output taken", func() bool { return l.idle(t) })
	var one, two, errs testkit.Buffer
	first := attach(t, t.Context(), l, AttachOptions{Stdout: &one, Stderr: &errs})
	second := attach(t, t.Context(), l, AttachOptions{Stdout: &two})
	s.write(stdout, "prompt> ") // shown at once, though the log waits for the end
	within(t, "prompt", func() bool { return one.String() == "prompt> " && two.String() == "prompt> " })
	s.write(stdout, "answer\n")
	s.write(stderr, "oops\n")
	s.end()
	if err := errors.Join(wait(t, first), wait(t, second)); err != nil {
		t.Fatal(err)
	}
	if got := [3]string{one.String(), two.String(), errs.String()}; got != [3]string{"prompt> answer\n", "prompt> answer\n", "oops\n"} {
		t.Errorf("clients got %q", got)
	}
	drain(t, l)
	if err := l.Attach(t.Context(), AttachOptions{Stdout: &one}); err != nil {
		t.Errorf("attach after the end: %v", err)
	}
}

func TestAttachEnds(t *testing.T) {
	l := open(t, options(t))
	s := startShim(t, l.Config())
	l.Running()
	ctx, cancel := context.WithCancel(t.Context())
	cancelled := attach(t, ctx, l, AttachOptions{Stdout: io.Discard})
	cancel()
	if err := wait(t, cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled client: %v", err)
	}
	r, w := io.Pipe()
	gone := attach(t, t.Context(), l, AttachOptions{Stdout: w})
	r.Close()
	s.write(stdout, "x\n")
	if err := wait(t, gone); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("client that went: %v", err)
	}
	closed := attach(t, t.Context(), l, AttachOptions{Stdout: io.Discard})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, closed); !errdefs.IsUnavailable(err) {
		t.Errorf("client of a closed IO: %v", err)
	}
}

// A client that does not read is dropped; the log and the other client have
// everything.
func TestSlowClient(t *testing.T) {
	o := options(t)
	l := open(t, o)
	s := startShim(t, l.Config())
	l.Running()
	r, w := io.Pipe()
	defer r.Close()
	slow := attach(t, t.Context(), l, AttachOptions{Stdout: w})
	line := strings.Repeat("x", 1023) + "\n"
	for range 2 * backlog / len(line) {
		s.write(stdout, line)
	}
	if err := wait(t, slow); !errdefs.IsResourceExhausted(err) {
		t.Errorf("slow client: %v", err)
	}
	s.end()
	drain(t, l)
	if out, _ := kubelet(t, o.LogPath); len(out) != 2*backlog {
		t.Errorf("log has %d bytes, want %d", len(out), 2*backlog)
	}
}

func TestAttachStdin(t *testing.T) {
	o := options(t)
	o.Stdin = true
	l := open(t, o)
	s := startShim(t, l.Config())
	l.Running()
	got, closeIO, ended := stdinOf(t, l)
	bad := func() error { t.Error("stdin was closed"); return nil }
	// The end of input ends the attachment, not the container's stdin.
	for _, in := range []string{"first\n", "second\n"} {
		if err := wait(t, attach(t, t.Context(), l, AttachOptions{Stdin: strings.NewReader(in), Stdout: io.Discard, CloseStdin: bad})); err != nil {
			t.Fatal(err)
		}
		within(t, in, func() bool { return strings.HasSuffix(got.String(), in) })
	}
	// A client whose container does not read ends with its context.
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	client := attach(t, ctx, l, AttachOptions{Stdin: r, CloseStdin: bad})
	cancel()
	if err := wait(t, client); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	w.Close()
	select {
	case <-ended:
		t.Error("the container's stdin has ended")
	default:
	}
	closeIO()
	s.end()
	drain(t, l)
}

func TestStdinOnce(t *testing.T) {
	o := options(t)
	o.Stdin, o.StdinOnce = true, true
	l := open(t, o)
	s := startShim(t, l.Config())
	l.Running()
	got, closeIO, ended := stdinOf(t, l)
	r, w := io.Pipe()
	var out testkit.Buffer
	first := attach(t, t.Context(), l, AttachOptions{Stdin: r, Stdout: &out, CloseStdin: closeIO})
	io.WriteString(w, "all there is")
	w.Close()
	<-ended
	if got.String() != "all there is" {
		t.Errorf("container got %q", got)
	}
	second := attach(t, t.Context(), l, AttachOptions{Stdin: strings.NewReader("more"), CloseStdin: func() error {
		t.Error("closed twice")
		return nil
	}})
	s.write(stdout, "result\n")
	s.end()
	if err := errors.Join(wait(t, first), wait(t, second)); err != nil {
		t.Error(err)
	}
	if out.String() != "result\n" {
		t.Errorf("client got %q", out.String())
	}
}

// With a terminal the end of a client's input leaves the terminal open, for
// its close would hang up on the container.
func TestStdinOnceTerminal(t *testing.T) {
	o := options(t)
	o.Stdin, o.StdinOnce, o.TTY = true, true, true
	l := open(t, o)
	startShim(t, l.Config())
	l.Running()
	err := wait(t, attach(t, t.Context(), l, AttachOptions{Stdin: strings.NewReader("ls\n"), Stdout: io.Discard, CloseStdin: func() error {
		t.Error("stdin was closed")
		return nil
	}}))
	if err != nil {
		t.Error(err)
	}
}

func TestCloseStdinFails(t *testing.T) {
	o := options(t)
	o.Stdin, o.StdinOnce = true, true
	l := open(t, o)
	startShim(t, l.Config())
	l.Running()
	broken := errors.New("broken")
	err := wait(t, attach(t, t.Context(), l, AttachOptions{Stdin: strings.NewReader(""), CloseStdin: func() error { return broken }}))
	if !errors.Is(err, broken) {
		t.Error(err)
	}
}
