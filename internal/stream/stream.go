// Package stream serves exec, attach and port-forward: over HTTP connections
// that are upgraded to SPDY or WebSocket, as kubelets and crictl expect, with
// the protocols of k8s.io/cri-streaming.
//
// A CRI call gives a URL with a token that is good for one request within a
// minute. Whoever has the URL may use it, so the server listens on loopback
// unless told otherwise.
//
// Invariants:
//   - The context that the Runtime gets ends when the client has gone, when the
//     session is over, and at Close.
//   - Close ends every session and returns when all have ended.
//   - No session waits for another. What is slow to read delays its own
//     session only.
//
// Concurrency: a Server is safe for concurrent use; each session has the
// goroutine of its HTTP request.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	"k8s.io/utils/exec"
)

const (
	// DefaultAddress is loopback, any free port.
	DefaultAddress = "127.0.0.1:0"
	// DefaultIdleTimeout ends a connection on which nothing is sent.
	DefaultIdleTimeout = 4 * time.Hour
	// headerTimeout is how long a client may take to send its request.
	headerTimeout = 30 * time.Second
	// creationTimeout is how long a SPDY client may take to open its streams.
	creationTimeout = remotecommand.DefaultStreamCreationTimeout
	// errorDelay is how long a client may take to be ready for the error of a
	// forwarded port.
	errorDelay = 200 * time.Millisecond
	// closeGrace is how long sessions may take at Close to tell their clients.
	closeGrace = time.Second
	// closeTimeout is how long Close waits for those whose connection it closed.
	closeTimeout = 10 * time.Second
)

// Options configure a Server.
type Options struct {
	// Address is host:port; default DefaultAddress.
	Address string
	// Runtime does the work; required. Streams that were not asked for are nil.
	// For a command that ended with another code than 0, Exec returns an
	// ExitError.
	Runtime streaming.Runtime
	// IdleTimeout is DefaultIdleTimeout unless set.
	IdleTimeout time.Duration
	// Log is required.
	Log *slog.Logger
}

// A Server serves streams.
type Server struct {
	opts   Options
	tokens tokens
	http   *http.Server
	conns  connections
	base   string // URL; set by Start

	// sessions are the requests under way; stop ends their contexts.
	sessions sync.WaitGroup
	stopping context.Context
	stop     context.CancelFunc
	served   chan struct{} // closed when http.Serve has returned

	mu      sync.Mutex // guards started, closed
	started bool
	closed  bool
}

// New returns a Server that does not listen yet.
func New(o Options) (*Server, error) {
	if o.Runtime == nil || o.Log == nil {
		return nil, errors.New("stream: Options need Runtime and Log")
	}
	if o.Address == "" {
		o.Address = DefaultAddress
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = DefaultIdleTimeout
	}
	takeKlog(o.Log)
	s := &Server{opts: o, served: make(chan struct{})}
	s.stopping, s.stop = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	for _, kind := range []kind{kindExec, kindAttach, kindPortForward} {
		serve := func(w http.ResponseWriter, r *http.Request) { s.serve(kind, w, r) }
		mux.HandleFunc("GET /"+string(kind)+"/{token}", serve)
		mux.HandleFunc("POST /"+string(kind)+"/{token}", serve)
	}
	s.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: headerTimeout,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
		ConnContext:       connContext,
	}
	return s, nil
}

// Start listens. It returns at once; Close ends it.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started || s.closed {
		return fmt.Errorf("stream server on %s was started before: %w", s.opts.Address, errdefs.ErrFailedPrecondition)
	}
	l, err := net.Listen("tcp", s.opts.Address)
	if err != nil {
		return fmt.Errorf("stream server (stream.address): %w", err)
	}
	s.started = true
	s.base = "http://" + l.Addr().String()
	go func() {
		defer close(s.served)
		err := s.http.Serve(listener{l, &s.conns})
		if !errors.Is(err, http.ErrServerClosed) {
			s.opts.Log.Error("the stream server has stopped: exec, attach and port-forward fail until berth is restarted", "err", err)
		}
	}()
	return nil
}

// Close ends all sessions. It may be called twice, and before Start.
func (s *Server) Close() error {
	s.mu.Lock()
	started := s.started && !s.closed
	s.closed = true
	s.mu.Unlock()
	if !started {
		return nil
	}
	// A client that is cut off takes that for success; so first the sessions
	// end by their contexts, and say so.
	s.stop()
	ended := s.wait(closeGrace)
	err := s.http.Close()
	<-s.served
	s.conns.closeAll() // those that were taken over from http
	if !ended && !s.wait(closeTimeout) {
		err = errors.Join(err, errors.New("stream server: a session goes on after its connection was closed"))
	}
	return err
}

// wait waits for all sessions to end and tells whether they have.
func (s *Server) wait(timeout time.Duration) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.sessions.Wait()
	}()
	select {
	case <-done:
		return true
	case <-time.After(timeout):
		return false
	}
}

// Exec returns the URL at which the command of req is run.
func (s *Server) Exec(req *runtime.ExecRequest) (*runtime.ExecResponse, error) {
	err := checkStreams("exec", req.GetContainerId(), req.GetTty(), req.GetStdin(), req.GetStdout(), req.GetStderr())
	if err == nil && len(req.GetCmd()) == 0 {
		err = fmt.Errorf("exec: cmd is required: %w", errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, err
	}
	url, err := s.url(kindExec, req)
	return &runtime.ExecResponse{Url: url}, err
}

// Attach returns the URL at which a container's streams are.
func (s *Server) Attach(req *runtime.AttachRequest) (*runtime.AttachResponse, error) {
	err := checkStreams("attach", req.GetContainerId(), req.GetTty(), req.GetStdin(), req.GetStdout(), req.GetStderr())
	if err != nil {
		return nil, err
	}
	url, err := s.url(kindAttach, req)
	return &runtime.AttachResponse{Url: url}, err
}

// PortForward returns the URL at which a sandbox's ports are.
func (s *Server) PortForward(req *runtime.PortForwardRequest) (*runtime.PortForwardResponse, error) {
	if req.GetPodSandboxId() == "" {
		return nil, fmt.Errorf("port-forward: pod_sandbox_id is required: %w", errdefs.ErrInvalidArgument)
	}
	for _, port := range req.GetPort() {
		if err := checkPort(port); err != nil {
			return nil, err
		}
	}
	url, err := s.url(kindPortForward, req)
	return &runtime.PortForwardResponse{Url: url}, err
}

func checkStreams(op, container string, tty, stdin, stdout, stderr bool) error {
	switch {
	case container == "":
		return fmt.Errorf("%s: container_id is required: %w", op, errdefs.ErrInvalidArgument)
	case tty && stderr:
		return fmt.Errorf("%s: tty and stderr exclude each other, a terminal has one output: %w", op, errdefs.ErrInvalidArgument)
	case !stdin && !stdout && !stderr:
		return fmt.Errorf("%s: one of stdin, stdout and stderr is required: %w", op, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (s *Server) url(k kind, req any) (string, error) {
	s.mu.Lock()
	ready := s.started && !s.closed
	s.mu.Unlock()
	if !ready {
		return "", fmt.Errorf("%s: the stream server does not run: %w", k, errdefs.ErrUnavailable)
	}
	token, err := s.tokens.issue(k, req)
	if err != nil {
		return "", err
	}
	return s.base + "/" + string(k) + "/" + token, nil
}

// begin counts a session, unless Close has begun.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.sessions.Add(1)
	}
	return !s.closed
}

// serve is one session.
func (s *Server) serve(k kind, w http.ResponseWriter, r *http.Request) {
	if !s.begin() {
		http.Error(w, "the server is being stopped", http.StatusServiceUnavailable)
		return
	}
	defer s.sessions.Done()
	req, ok := s.tokens.redeem(k, r.PathValue("token"))
	if !ok {
		http.Error(w, "this URL was used or is older than a minute; ask for another one", http.StatusNotFound)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	r = r.WithContext(ctx)
	a := adapter{runtime: s.opts.Runtime, session: ctx, log: s.opts.Log}
	idle, protocols := s.opts.IdleTimeout, remotecommand.SupportedStreamingProtocols
	v5 := wsstream.IsWebSocketRequestWithStreamCloseProtocol(r)
	switch req := req.(type) {
	case *runtime.ExecRequest:
		a.opts = remotecommand.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, TTY: req.Tty}
		if v5 {
			serveV5(w, r, &a.opts, idle, a.execute(req.ContainerId, req.Cmd))
			return
		}
		remotecommand.ServeExec(w, r, a, "", "", req.ContainerId, req.Cmd, &a.opts, idle, creationTimeout, protocols)
	case *runtime.AttachRequest:
		a.opts = remotecommand.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, TTY: req.Tty}
		if v5 {
			serveV5(w, r, &a.opts, idle, a.attach(req.ContainerId))
			return
		}
		remotecommand.ServeAttach(w, r, a, "", "", req.ContainerId, &a.opts, idle, creationTimeout, protocols)
	case *runtime.PortForwardRequest:
		ports, err := portforward.BuildV4Options(req.Port)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		portforward.ServePortForward(w, r, a, req.PodSandboxId, "", ports, idle, creationTimeout, portforward.SupportedProtocols)
	}
}

// runFunc runs an exec or attach on a session's streams.
type runFunc func(ctx context.Context, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error

// adapter is what cri-streaming's handlers call; it gives the session's
// context to calls for which they have none, and nil for streams that were not
// asked for: over WebSocket they are there and at their end.
type adapter struct {
	runtime streaming.Runtime
	session context.Context
	log     *slog.Logger
	opts    remotecommand.Options
}

func (a adapter) ExecInContainer(ctx context.Context, _, _, container string, cmd []string, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return a.execute(container, cmd)(ctx, in, out, stderr, tty, resize)
}

func (a adapter) AttachContainer(ctx context.Context, _, _, container string, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return a.attach(container)(ctx, in, out, stderr, tty, resize)
}

func (a adapter) execute(container string, cmd []string) runFunc {
	return func(ctx context.Context, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
		a.wanted(&in, &out, &stderr)
		return a.told(a.runtime.Exec(ctx, container, cmd, in, out, stderr, tty, resize), "exec", "container", container)
	}
}

func (a adapter) attach(container string) runFunc {
	return func(ctx context.Context, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
		a.wanted(&in, &out, &stderr)
		return a.told(a.runtime.Attach(ctx, container, in, out, stderr, tty, resize), "attach", "container", container)
	}
}

func (a adapter) wanted(in *io.Reader, out, stderr *io.WriteCloser) {
	if !a.opts.Stdin {
		*in = nil
	}
	if !a.opts.Stdout {
		*out = nil
	}
	if !a.opts.Stderr {
		*stderr = nil
	}
}

func (a adapter) PortForward(_ context.Context, pod, _ string, port int32, data io.ReadWriteCloser) error {
	err := a.told(a.runtime.PortForward(a.session, pod, port, data), "port-forward", "pod", pod)
	if err != nil {
		// The handler resets the streams right after it has written the error.
		// A client that has not begun to read by then loses it.
		select {
		case <-time.After(errorDelay):
		case <-a.session.Done():
		}
	}
	return err
}

// told logs what the client is told of a session that failed.
func (a adapter) told(err error, op, what, id string) error {
	var exit exec.ExitError
	if err != nil && a.session.Err() == nil && !errors.As(err, &exit) {
		a.log.Info(op+" failed", what, id, "err", err)
	}
	return err
}

// ExitError tells an exec's client that its command ended with code.
func ExitError(code int) error {
	return exec.CodeExitError{Err: fmt.Errorf("exit status %d", code), Code: code}
}
