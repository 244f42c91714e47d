package joined

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
)

// dialTimeout bounds a connection to a socket of this machine, and the wait for
// one to be closed.
const dialTimeout = 5 * time.Second

// A pool has one connection an address. Its zero value is ready. The goroutine
// that reads from a connection ends when it breaks or close is called.
type pool struct {
	mu     sync.Mutex
	conns  map[string]*conn
	closed bool
}

type conn struct{ *ttrpc.Client }

// get returns the connection to an address.
func (p *pool) get(address string) (*conn, error) {
	p.mu.Lock()
	c, closed := p.conns[address], p.closed
	p.mu.Unlock()
	if c != nil || closed {
		return c, p.usable(address, closed)
	}
	socket, err := net.DialTimeout("unix", strings.TrimPrefix(address, scheme), dialTimeout)
	if err != nil {
		return nil, fmt.Errorf("task API %s: %w: %w", address, err, errdefs.ErrUnavailable)
	}
	made := &conn{}
	made.Client = ttrpc.NewClient(socket, ttrpc.WithOnClose(func() { p.drop(address, made) }))
	return p.keep(address, made)
}

func (p *pool) usable(address string, closed bool) error {
	if closed {
		return fmt.Errorf("task API %s: containerd is being stopped: %w", address, errdefs.ErrUnavailable)
	}
	return nil
}

// keep makes a connection the one of its address, or closes it where another
// call was first.
func (p *pool) keep(address string, made *conn) (*conn, error) {
	p.mu.Lock()
	have, closed := p.conns[address], p.closed
	if have == nil && !closed {
		if p.conns == nil {
			p.conns = map[string]*conn{}
		}
		p.conns[address], have = made, made
	}
	p.mu.Unlock()
	if have == made {
		return made, nil
	}
	return have, errors.Join(p.usable(address, closed), made.Close())
}

// drop has the next call make a new connection.
func (p *pool) drop(address string, c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns[address] == c {
		delete(p.conns, address)
	}
}

// close closes all connections and waits for their goroutines. It may be called
// again.
func (p *pool) close() error {
	p.mu.Lock()
	conns := p.conns
	p.conns, p.closed = nil, true
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	var errs []error
	for _, c := range conns {
		errs = append(errs, c.Close(), c.UserOnCloseWait(ctx))
	}
	return errors.Join(errs...)
}
