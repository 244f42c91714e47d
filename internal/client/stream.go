package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
)

// The transports of a stream.
const (
	TransportAuto      = "auto"
	TransportWebSocket = "websocket"
	TransportSPDY      = "spdy"
)

// A StreamRequest is an exec or an attach.
type StreamRequest struct {
	ContainerID string
	// Command is what to execute; none attaches.
	Command []string
	// Stdin, Stdout and Stderr may be nil; with TTY, Stderr is Stdout.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	TTY            bool
	// Resize, where set, gives the terminal's size when it changes.
	Resize remotecommand.TerminalSizeQueue
	// Transport is one of those above; empty is TransportAuto.
	Transport string
}

// An ExitCode is the end of a command that did not succeed.
type ExitCode int

// Error implements error.
func (e ExitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Stream runs an exec or an attach until it ends or ctx does. A command's exit
// code other than 0 is an ExitCode.
//
// The WebSocket protocol of CRI servers (v4) cannot say that stdin has ended,
// so a stdin that is no terminal goes over SPDY. An address is good for one
// attempt, so a fallback asks for another.
func (c *Client) Stream(ctx context.Context, req StreamRequest) error {
	webSocket := req.Transport == TransportWebSocket || req.Transport != TransportSPDY && (req.Stdin == nil || req.TTY)
	if webSocket {
		err := c.stream1(ctx, req, newWebSocket)
		if req.Transport == TransportWebSocket || !httpstream.IsUpgradeFailure(err) && !httpstream.IsHTTPSProxyError(err) {
			return streamError(err)
		}
	}
	return streamError(c.stream1(ctx, req, newSPDY))
}

// stream1 makes one attempt over one transport.
func (c *Client) stream1(ctx context.Context, req StreamRequest, executor func(string) (remotecommand.Executor, error)) error {
	address, err := c.streamAddress(ctx, req)
	if err != nil {
		return err
	}
	e, err := executor(address)
	if err != nil {
		return fmt.Errorf("streaming address %s: %w", address, err)
	}
	o := remotecommand.StreamOptions{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, Tty: req.TTY, TerminalSizeQueue: req.Resize}
	if req.TTY {
		o.Stderr = nil
	}
	return e.StreamWithContext(ctx, o)
}

func newWebSocket(address string) (remotecommand.Executor, error) {
	return remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, "GET", address, "v4.channel.k8s.io")
}

func newSPDY(address string) (remotecommand.Executor, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewSPDYExecutor(&rest.Config{}, "POST", u)
}

func (c *Client) streamAddress(ctx context.Context, req StreamRequest) (string, error) {
	stderr := req.Stderr != nil && !req.TTY
	if len(req.Command) == 0 {
		resp, err := c.Runtime.Attach(ctx, &runtime.AttachRequest{
			ContainerId: req.ContainerID, Tty: req.TTY, Stdin: req.Stdin != nil, Stdout: req.Stdout != nil, Stderr: stderr,
		})
		return resp.GetUrl(), err
	}
	resp, err := c.Runtime.Exec(ctx, &runtime.ExecRequest{
		ContainerId: req.ContainerID, Cmd: req.Command, Tty: req.TTY, Stdin: req.Stdin != nil, Stdout: req.Stdout != nil, Stderr: stderr,
	})
	return resp.GetUrl(), err
}

func streamError(err error) error {
	var exit exec.CodeExitError
	if errors.As(err, &exit) {
		return ExitCode(exit.Code)
	}
	if err == nil {
		return nil
	}
	// What every failure of the server begins with says nothing.
	for _, noise := range []string{"Internal error occurred: ", "error executing command in container: ", "error attaching to container: "} {
		if text, found := strings.CutPrefix(err.Error(), noise); found {
			err = &serverError{text, err}
		}
	}
	return err
}

// A serverError is an error in fewer words.
type serverError struct {
	text string
	err  error
}

// Error implements error.
func (e *serverError) Error() string { return e.text }

// Unwrap gives the whole error.
func (e *serverError) Unwrap() error { return e.err }
