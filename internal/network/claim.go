package network

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/containerd/errdefs"
)

// claims hold names of the built-in network for this daemon: its bridge and
// its subnets. Two daemons with separate stores would else give one address to
// two pods. A claim is an abstract unix socket: it belongs to the network
// namespace, as a bridge does, and ends with the process.
type claims struct{ held map[string]net.PacketConn }

// take holds exactly names.
func (c *claims) take(names []string) error {
	next := map[string]net.PacketConn{}
	var errs []error
	for _, name := range names {
		if conn, ok := c.held[name]; ok {
			next[name] = conn
			continue
		}
		conn, err := net.ListenPacket("unixgram", "@berth-network "+name)
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("%s is used by another daemon on this machine: set network.default_bridge and network.default_subnet to others: %w", name, errdefs.ErrFailedPrecondition)
		}
		if err != nil {
			errs = append(errs, err)
			break
		}
		next[name] = conn
	}
	for name, conn := range c.held {
		if next[name] != conn {
			errs = append(errs, conn.Close())
		}
	}
	c.held = next
	return errors.Join(errs...)
}

func (c *claims) release() error { return c.take(nil) }
