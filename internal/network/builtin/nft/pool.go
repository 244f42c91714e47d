package nft

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// maxIdle bounds the connections that are kept for a namespace.
const maxIdle = 64

// Pool keeps connections open: the kernel lets the close of one wait until no
// processor can see any more what the rules before the last change were, ten
// milliseconds and more. The zero value is ready.
type Pool struct {
	mu   sync.Mutex // guards idle
	idle map[namespace][]*Conn
}

// buffers are those of connections in use: what is kept idle is small.
var buffers = sync.Pool{New: func() any { b := make([]byte, recvSize); return &b }}

// namespace identifies a network namespace while a connection holds it.
type namespace struct{ dev, ino uint64 }

// With calls fn with a connection to the calling thread's network namespace.
func (p *Pool) With(fn func(*Conn) error) error {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return fmt.Errorf("nftables: the thread's network namespace: %w", err)
	}
	ns := namespace{st.Dev, st.Ino}
	c := p.take(ns)
	if c == nil {
		var err error
		if c, err = open(); err != nil {
			return err
		}
	}
	buf := buffers.Get().(*[]byte)
	c.buf = *buf
	err := fn(c)
	c.buf = nil
	buffers.Put(buf)
	if c.broken || !p.put(ns, c) {
		return errors.Join(err, c.Close())
	}
	return err
}

func (p *Pool) take(ns namespace) *Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	idle := p.idle[ns]
	if len(idle) == 0 {
		return nil
	}
	p.idle[ns] = idle[:len(idle)-1]
	return idle[len(idle)-1]
}

func (p *Pool) put(ns namespace, c *Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.idle == nil {
		p.idle = map[namespace][]*Conn{}
	}
	if len(p.idle[ns]) >= maxIdle {
		return false
	}
	p.idle[ns] = append(p.idle[ns], c)
	return true
}

// Close closes the connections that are kept. A Pool may be used again after
// it; so closing it twice is safe.
func (p *Pool) Close() error {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	var errs []error
	for _, conns := range idle {
		for _, c := range conns {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// Supported tells whether the kernel has nftables.
func (p *Pool) Supported() bool {
	return p.With(func(c *Conn) error {
		_, err := c.HasChain(Table{Family: IPv4, Name: "nat"}, "none")
		return err
	}) == nil
}
