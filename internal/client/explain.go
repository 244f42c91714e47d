package client

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// An Error is a failed call in words for a user. It keeps the gRPC status, so
// status.Code still tells the kind.
type Error struct {
	text   string
	status *status.Status
}

// Error implements error.
func (e *Error) Error() string { return e.text }

// GRPCStatus makes status.FromError and status.Code work.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// explain puts a call's error in the words of its user: no "rpc error", and
// what to do where that is known.
func (c *Client) explain(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	text := s.Message()
	switch s.Code() {
	case codes.Unavailable:
		text = c.unreachable(text)
	case codes.DeadlineExceeded:
		if text == "context deadline exceeded" {
			text = fmt.Sprintf("the server at %s did not answer within %s: its log says more (journalctl -u berth)", c.socket, quickTimeout)
		}
	case codes.Unimplemented:
		text = fmt.Sprintf("the server at %s does not do this: %s", c.socket, text)
	}
	return &Error{text: text, status: s}
}

// unreachable says why nothing answers at the socket.
func (c *Client) unreachable(text string) string {
	conn, err := net.Dial("unix", c.socket)
	if err == nil {
		return errors.Join(fmt.Errorf("the connection to %s broke off: %s", c.socket, text), conn.Close()).Error()
	}
	const start = "start it with `systemctl start berth` or `berth serve`, or name its socket with --address"
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Sprintf("no daemon: there is no socket at %s; %s", c.socket, start)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("no daemon: nothing listens at %s any more; %s", c.socket, start)
	case errors.Is(err, os.ErrPermission):
		return fmt.Sprintf("no permission to use %s; run this as root (sudo berth …)", c.socket)
	}
	return fmt.Sprintf("cannot connect to %s: %v", c.socket, err)
}
