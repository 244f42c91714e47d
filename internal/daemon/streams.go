package daemon

import (
	"context"
	"io"
	"net/netip"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"berth/internal/container"
	"berth/internal/paths"
	"berth/internal/record"
	"berth/internal/spec"
	"berth/internal/stream"
)

// streams connects the streaming server to containers and pods.
type streams struct {
	containers *container.Service
	store      *record.Store
	paths      paths.Paths
}

// Exec implements the streaming server's Runtime.
func (s *streams) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	code, err := s.containers.Exec(ctx, id, cmd, connect(in, out, errOut, tty, resize))
	if err != nil {
		return err
	}
	if code != 0 {
		return stream.ExitError(int(code))
	}
	return nil
}

// Attach implements the streaming server's Runtime.
func (s *streams) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return s.containers.Attach(ctx, id, connect(in, out, errOut, tty, resize))
}

// connect leaves out what the client did not open; a nil pointer in an
// interface would not be nil.
func connect(in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) container.Streams {
	streams := container.Streams{Stdin: in, TTY: tty, Resize: resize}
	if out != nil {
		streams.Stdout = out
	}
	if errOut != nil && !tty {
		streams.Stderr = errOut
	}
	return streams
}

// PortForward implements the streaming server's Runtime.
func (s *streams) PortForward(ctx context.Context, id string, port int32, conn io.ReadWriteCloser) error {
	box, err := s.store.Sandboxes.Get(id)
	if err != nil {
		return err
	}
	netns := ""
	if !spec.HostNetwork(box.Config) {
		netns = s.paths.Namespace(id, "net")
	}
	var addresses []netip.Addr
	if box.Pause {
		for _, ip := range box.IPs {
			if a, err := netip.ParseAddr(ip); err == nil { // a plugin's own form is of no use here
				addresses = append(addresses, a)
			}
		}
	}
	return stream.Forward(ctx, netns, port, conn, addresses...)
}
