package stream

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
)

// connections are the open ones. http forgets those that are upgraded.
type connections struct {
	mu   sync.Mutex // guards open
	open map[*conn]struct{}
}

func (c *connections) closeAll() {
	c.mu.Lock()
	list := make([]*conn, 0, len(c.open))
	for conn := range c.open {
		list = append(list, conn)
	}
	c.mu.Unlock()
	for _, conn := range list {
		_ = conn.Close() // its session is being ended
	}
}

// listener makes a conn of each connection.
type listener struct {
	net.Listener
	conns *connections
}

func (l listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, conns: l.conns}
	c.ctx, c.gone = context.WithCancel(context.Background())
	l.conns.mu.Lock()
	defer l.conns.mu.Unlock()
	if l.conns.open == nil {
		l.conns.open = map[*conn]struct{}{}
	}
	l.conns.open[c] = struct{}{}
	return c, nil
}

// A conn has a context that ends when the client has gone: when reading fails
// or the connection is closed.
type conn struct {
	net.Conn
	conns *connections
	ctx   context.Context
	gone  context.CancelFunc

	closeOnce sync.Once
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	// http ends its own reading by a deadline when the connection is upgraded.
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.gone()
	}
	return n, err
}

// Close may be called again, for nothing: spdystream takes the error of a
// second close for one that it has to wait for.
func (c *conn) Close() (err error) {
	c.closeOnce.Do(func() {
		c.gone()
		c.conns.mu.Lock()
		delete(c.conns.open, c)
		c.conns.mu.Unlock()
		err = c.Conn.Close()
	})
	return err
}

// connContext makes the context of a request end with its client.
func connContext(ctx context.Context, nc net.Conn) context.Context {
	c, ok := nc.(*conn)
	if !ok {
		return ctx
	}
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(c.ctx, cancel)
	return ctx
}
