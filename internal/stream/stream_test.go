package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	server "k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/utils/exec"
)

func TestMain(m *testing.M) {
	// client-go's WebSocket client leaves its own goroutines behind when it is
	// cut off.
	const client = "k8s.io/client-go/tools/remotecommand."
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction(client+"(*stream).Read"),
		goleak.IgnoreAnyFunction(client+"(*streamProtocolV4).stream"),
		goleak.IgnoreAnyFunction(client+"(*heartbeat).start"))
}

// fake is a Runtime whose exec and attach do what the test says.
type fake struct {
	exec    func(ctx context.Context, cmd []string, in io.Reader, out, stderr io.Writer, tty bool, resize <-chan server.TerminalSize) error
	forward func(ctx context.Context, port int32, data io.ReadWriteCloser) error
}

func (f fake) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan server.TerminalSize) error {
	return f.exec(ctx, append([]string{id}, cmd...), in, out, stderr, tty, resize)
}

func (f fake) Attach(ctx context.Context, id string, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan server.TerminalSize) error {
	return f.exec(ctx, []string{id, "attach"}, in, out, stderr, tty, resize)
}

func (f fake) PortForward(ctx context.Context, id string, port int32, data io.ReadWriteCloser) error {
	return f.forward(ctx, port, data)
}

func startServer(t *testing.T, f fake) *Server {
	t.Helper()
	s, err := New(Options{Runtime: f, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// transports are the clients there are. WebSocket has no way to close one
// stream before version 5 of the protocol.
var transports = []struct {
	name      string
	halfClose bool
	executor  func(u string) (remotecommand.Executor, error)
}{
	{"SPDY", true, func(u string) (remotecommand.Executor, error) {
		parsed, err := url.Parse(u)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, parsed)
	}},
	{"WebSocket", true, func(u string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(&rest.Config{}, http.MethodGet, u)
	}},
	{"WebSocket version 4", false, func(u string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, http.MethodGet, u, "v4.channel.k8s.io")
	}},
}

// eachTransport runs a test with each transport.
func eachTransport(t *testing.T, run func(t *testing.T, halfClose bool, executor func(string) remotecommand.Executor)) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			run(t, tr.halfClose, func(u string) remotecommand.Executor {
				e, err := tr.executor(u)
				if err != nil {
					t.Fatal(err)
				}
				return e
			})
		})
	}
}

func execURL(t *testing.T, s *Server, req *runtime.ExecRequest) string {
	t.Helper()
	req.ContainerId = "c1"
	req.Cmd = []string{"echo", "a b"}
	resp, err := s.Exec(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Url
}

func TestExec(t *testing.T) {
	eachTransport(t, func(t *testing.T, halfClose bool, executor func(string) remotecommand.Executor) {
		s := startServer(t, fake{exec: func(ctx context.Context, cmd []string, in io.Reader, out, stderr io.Writer, tty bool, _ <-chan server.TerminalSize) error {
			buf := make([]byte, len("input"))
			var err error
			if halfClose {
				buf, err = io.ReadAll(in)
			} else {
				_, err = io.ReadFull(in, buf)
			}
			fmt.Fprintf(out, "%q %s %v", cmd, buf, tty)
			fmt.Fprint(stderr, "warning")
			return errors.Join(err, ctx.Err())
		}})
		var out, stderr bytes.Buffer
		u := execURL(t, s, &runtime.ExecRequest{Stdin: true, Stdout: true, Stderr: true})
		err := executor(u).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("input"), Stdout: &out, Stderr: &stderr})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := out.String(), `["c1" "echo" "a b"] input false`; got != want {
			t.Errorf("stdout %q, want %q", got, want)
		}
		if got := stderr.String(); got != "warning" {
			t.Errorf("stderr %q", got)
		}
		err = executor(u).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out, Stderr: &stderr})
		if err == nil {
			t.Error("a URL was good for two requests")
		}
	})
}

func TestExecFails(t *testing.T) {
	eachTransport(t, func(t *testing.T, _ bool, executor func(string) remotecommand.Executor) {
		for _, tc := range []struct {
			name string
			err  error
			code int
			want string
		}{
			{"exit code", ExitError(42), 42, ""},
			{"error", fmt.Errorf("container c1 is not running: %w", errdefs.ErrFailedPrecondition), 0, "container c1 is not running"},
		} {
			t.Run(tc.name, func(t *testing.T) {
				s := startServer(t, fake{exec: func(context.Context, []string, io.Reader, io.Writer, io.Writer, bool, <-chan server.TerminalSize) error {
					return tc.err
				}})
				err := executor(execURL(t, s, &runtime.ExecRequest{Stdout: true})).
					StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard})
				var exit exec.ExitError
				if isExit := errors.As(err, &exit); isExit != (tc.code != 0) || isExit && exit.ExitStatus() != tc.code {
					t.Errorf("err = %v", err)
				}
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("err = %v", err)
				}
			})
		}
	})
}

// sizes is a terminal that is resized once.
type sizes struct {
	once sync.Once
	end  chan struct{}
}

func (s *sizes) Next() *remotecommand.TerminalSize {
	var size *remotecommand.TerminalSize
	s.once.Do(func() { size = &remotecommand.TerminalSize{Width: 132, Height: 43} })
	if size == nil {
		<-s.end
	}
	return size
}

func TestTerminalAndResize(t *testing.T) {
	eachTransport(t, func(t *testing.T, _ bool, executor func(string) remotecommand.Executor) {
		s := startServer(t, fake{exec: func(_ context.Context, cmd []string, _ io.Reader, out, stderr io.Writer, tty bool, resize <-chan server.TerminalSize) error {
			size := <-resize
			fmt.Fprintf(out, "%s %v %dx%d", cmd[1], tty, size.Width, size.Height)
			return nil
		}})
		resp, err := s.Attach(&runtime.AttachRequest{ContainerId: "c1", Tty: true, Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		in, typed := io.Pipe()
		defer typed.Close()
		size := &sizes{end: make(chan struct{})}
		defer close(size.end)
		var out bytes.Buffer
		err = executor(resp.Url).StreamWithContext(t.Context(),
			remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: size})
		if err != nil {
			t.Fatal(err)
		}
		if got := out.String(); got != "attach true 132x43" {
			t.Errorf("output %q", got)
		}
	})
}

// Streams that were not asked for are none.
func TestStreamsAskedFor(t *testing.T) {
	eachTransport(t, func(t *testing.T, _ bool, executor func(string) remotecommand.Executor) {
		s := startServer(t, fake{exec: func(_ context.Context, _ []string, in io.Reader, out, stderr io.Writer, _ bool, _ <-chan server.TerminalSize) error {
			if in != nil || stderr != nil || out == nil {
				return fmt.Errorf("stdin %v, stdout %v, stderr %v", in, out, stderr)
			}
			return nil
		}})
		err := executor(execURL(t, s, &runtime.ExecRequest{Stdout: true})).
			StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard})
		if err != nil {
			t.Error(err)
		}
	})
}

// much is more than any buffer on the way.
const much = 8 << 20

func TestMuchOutput(t *testing.T) {
	eachTransport(t, func(t *testing.T, _ bool, executor func(string) remotecommand.Executor) {
		s := startServer(t, fake{exec: func(_ context.Context, _ []string, _ io.Reader, out, _ io.Writer, _ bool, _ <-chan server.TerminalSize) error {
			_, err := io.CopyN(out, zeros{}, much)
			return err
		}})
		var n counter
		err := executor(execURL(t, s, &runtime.ExecRequest{Stdout: true})).
			StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &n})
		if err != nil || n != much {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type counter int

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

// The client goes away in the middle of a command that says nothing.
func TestClientGone(t *testing.T) {
	eachTransport(t, func(t *testing.T, _ bool, executor func(string) remotecommand.Executor) {
		began, ended := make(chan struct{}), make(chan error, 1)
		s := startServer(t, fake{exec: func(ctx context.Context, _ []string, _ io.Reader, out, _ io.Writer, _ bool, _ <-chan server.TerminalSize) error {
			close(began)
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			<-began
			cancel()
		}()
		err := executor(execURL(t, s, &runtime.ExecRequest{Stdout: true})).StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard})
		if err == nil {
			t.Error("no error")
		}
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Error("the command's context did not end")
		}
	})
}

func TestCloseEndsSessions(t *testing.T) {
	eachTransport(t, func(t *testing.T, _ bool, executor func(string) remotecommand.Executor) {
		began := make(chan struct{})
		s := startServer(t, fake{exec: func(ctx context.Context, _ []string, in io.Reader, _, _ io.Writer, _ bool, _ <-chan server.TerminalSize) error {
			close(began)
			<-ctx.Done()
			return ctx.Err()
		}})
		done := make(chan error, 1)
		u := execURL(t, s, &runtime.ExecRequest{Stdin: true, Stdout: true})
		e := executor(u)
		in, typed := io.Pipe()
		defer typed.Close()
		go func() {
			done <- e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: in, Stdout: io.Discard})
		}()
		<-began
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err == nil {
			t.Error("the client took the end for success")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := s.Exec(&runtime.ExecRequest{ContainerId: "c1", Cmd: []string{"x"}, Stdout: true}); !errdefs.IsUnavailable(err) {
			t.Errorf("exec after Close: %v", err)
		}
	})
}

func TestBadRequests(t *testing.T) {
	s := startServer(t, fake{})
	cmd := []string{"true"}
	for _, tc := range []struct {
		name string
		call func() error
		want string
	}{
		{"exec without a container", func() error { _, err := s.Exec(&runtime.ExecRequest{Cmd: cmd, Stdout: true}); return err }, "container_id"},
		{"exec without a command", func() error {
			_, err := s.Exec(&runtime.ExecRequest{ContainerId: "c", Stdout: true})
			return err
		}, "cmd"},
		{"exec without streams", func() error { _, err := s.Exec(&runtime.ExecRequest{ContainerId: "c", Cmd: cmd}); return err }, "stdin"},
		{"exec with tty and stderr", func() error {
			_, err := s.Exec(&runtime.ExecRequest{ContainerId: "c", Cmd: cmd, Tty: true, Stderr: true})
			return err
		}, "tty"},
		{"attach without streams", func() error { _, err := s.Attach(&runtime.AttachRequest{ContainerId: "c"}); return err }, "stdin"},
		{"port-forward without a sandbox", func() error { _, err := s.PortForward(&runtime.PortForwardRequest{}); return err }, "pod_sandbox_id"},
		{"port-forward to no port", func() error {
			_, err := s.PortForward(&runtime.PortForwardRequest{PodSandboxId: "p", Port: []int32{70000}})
			return err
		}, "70000"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.call(); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("err = %v", err)
			}
		})
	}
}

func TestStartFails(t *testing.T) {
	s := startServer(t, fake{})
	other, err := New(Options{Runtime: fake{}, Log: slog.New(slog.DiscardHandler), Address: strings.TrimPrefix(s.base, "http://")})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err == nil || !strings.Contains(err.Error(), "stream.address") {
		t.Errorf("err = %v", err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Start(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
}

func TestTokens(t *testing.T) {
	var tk tokens
	token, err := tk.issue(kindExec, "request")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := tk.redeem(kindAttach, token); ok {
		t.Error("a token for exec is good for attach")
	}
	if req, ok := tk.redeem(kindExec, token); !ok || req != "request" {
		t.Errorf("got %v, %v", req, ok)
	}
	if _, ok := tk.redeem(kindExec, token); ok {
		t.Error("a token is good twice")
	}
	old, err := tk.issue(kindExec, "old")
	if err != nil {
		t.Fatal(err)
	}
	w := tk.waiting[old]
	w.expires = time.Now().Add(-time.Second)
	tk.waiting[old] = w
	if _, ok := tk.redeem(kindExec, old); ok {
		t.Error("a token is good for ever")
	}
	for range maxTokens {
		if _, err := tk.issue(kindExec, "many"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tk.issue(kindExec, "one too many"); !errdefs.IsResourceExhausted(err) {
		t.Errorf("err = %v", err)
	}
}
