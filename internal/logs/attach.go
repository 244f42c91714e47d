package logs

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"
)

// backlog is how much output waits for one client; one that is further behind
// is dropped.
const backlog = 4 << 20

// AttachOptions are a client's streams; those that are nil are not wanted.
// After Attach has returned the caller closes them, which ends what still
// reads or writes them.
type AttachOptions struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Attached, where not nil, is called once, before the first output is
	// written: output from then on comes.
	Attached func() error
	// CloseStdin closes the container's end of stdin, for StdinOnce.
	CloseStdin func() error
}

// Attach carries the container's output to a client from now on, and the
// client's input to the container. It returns nil when the output has ended
// and the client has it, or has ended its input (which is all that is seen of a
// client that has gone); but where stdin is for one client only and no
// terminal, the end of input closes the container's stdin and output goes on.
// Several clients may be attached.
//
// Errors: ErrResourceExhausted where the client did not read fast enough,
// ErrUnavailable where the IO was closed, ctx's, and those of the client's
// streams.
func (l *IO) Attach(ctx context.Context, o AttachOptions) error {
	c := newClient(o)
	return l.input.Attach(ctx, o, func() (<-chan error, func(), error) {
		added := l.clients.add(c)
		if o.Attached != nil {
			if err := o.Attached(); err != nil {
				l.clients.remove(c)
				return nil, nil, err
			}
		}
		if !added {
			ended := make(chan error, 1)
			ended <- nil
			return ended, func() {}, nil
		}
		output, gone := make(chan error, 2), make(chan struct{})
		go func() { output <- c.carry() }()
		go func() {
			select {
			case <-c.dropped: // carry may hang in a write
				output <- c.reason()
			case <-gone:
			}
		}()
		return output, func() {
			close(gone)
			l.clients.remove(c)
		}, nil
	})
}

// clients are those attached to one container.
type clients struct {
	mu    sync.Mutex // guards what follows; taken before a client's own
	list  []*client
	ended bool
}

// add says false where the output has ended.
func (s *clients) add(c *client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.list = append(s.list, c)
	return true
}

func (s *clients) remove(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.list {
		if s.list[i] == c {
			s.list = append(s.list[:i], s.list[i+1:]...)
			break
		}
	}
	c.end(nil)
}

// send hands data to each client. It copies data and never waits.
func (s *clients) send(stream string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) == 0 {
		return
	}
	data = append([]byte(nil), data...)
	for _, c := range s.list {
		c.push(stream, data)
	}
}

// end lets each client take what waits for it and then go.
func (s *clients) end(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, c := range s.list {
		c.end(reason)
	}
}

// A client takes output at its own pace.
type client struct {
	out     map[string]io.Writer
	dropped chan struct{} // closed when it fell too far behind

	mu     sync.Mutex // guards what follows
	more   sync.Cond  // on mu
	queue  []chunk
	queued int
	done   bool
	err    error
}

type chunk struct {
	stream string
	data   []byte
}

func newClient(o AttachOptions) *client {
	c := &client{out: map[string]io.Writer{}, dropped: make(chan struct{})}
	c.more.L = &c.mu
	if o.Stdout != nil {
		c.out[stdout] = o.Stdout
	}
	if o.Stderr != nil {
		c.out[stderr] = o.Stderr
	}
	return c
}

func (c *client) push(stream string, data []byte) {
	if c.out[stream] == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		return
	}
	if c.queued+len(data) > backlog {
		c.done, c.queue = true, nil
		c.err = fmt.Errorf("the client is more than %d MiB of output behind and was dropped; read the log instead: %w", backlog>>20, errdefs.ErrResourceExhausted)
		close(c.dropped)
	} else {
		c.queue = append(c.queue, chunk{stream, data})
		c.queued += len(data)
	}
	c.more.Signal()
}

func (c *client) end(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.done {
		c.done, c.err = true, reason
		c.more.Signal()
	}
}

func (c *client) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// carry writes what is queued until there will be no more.
func (c *client) carry() error {
	for {
		c.mu.Lock()
		for len(c.queue) == 0 && !c.done {
			c.more.Wait()
		}
		if len(c.queue) == 0 {
			defer c.mu.Unlock()
			return c.err
		}
		next := c.queue[0]
		c.queue = c.queue[1:]
		c.mu.Unlock()
		if _, err := c.out[next.stream].Write(next.data); err != nil {
			return fmt.Errorf("write to the client: %w", err)
		}
		c.mu.Lock()
		c.queued -= len(next.data)
		c.mu.Unlock()
	}
}
