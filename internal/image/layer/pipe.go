package layer

import (
	"errors"
	"io"
	"sync"
)

// A Pipe carries bytes from one goroutine to another in a few large buffers.
// Unlike io.Pipe it lets the writer run ahead, by depth buffers.
type Pipe struct {
	full   chan *[]byte
	closed chan struct{} // by the reader
	once   sync.Once
	err    error // why it ends, set before full is closed

	// The reader's: what is left of taken.
	taken *[]byte
	left  []byte
}

// The buffers are small, so that what one goroutine has read is in the core's
// cache for the next: with 256 KiB a large image cost a fifth more CPU.
const (
	bufferSize = 32 << 10
	depth      = 8
)

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// errClosed is what the writer gets when the reader has closed.
var errClosed = errors.New("layer: nobody reads")

// NewPipe returns a Pipe. The writer must end it with End, the reader with
// Close.
func NewPipe() *Pipe {
	return &Pipe{full: make(chan *[]byte, depth), closed: make(chan struct{})}
}

// Fill reads r into a buffer until it is full and hands it to the reader. see
// is called with the bytes before that, and must not keep them; its error ends
// it. At the end of r it returns io.EOF.
func (p *Pipe) Fill(r io.Reader, see func([]byte) error) error {
	b := buffers.Get().(*[]byte)
	n, err := fill(r, *b)
	if n == 0 {
		buffers.Put(b)
		return err
	}
	*b = (*b)[:n]
	if serr := see(*b); serr != nil {
		p.put(b)
		return serr
	}
	select {
	case p.full <- b:
		return err
	case <-p.closed:
		p.put(b)
		return errors.Join(errClosed, err)
	}
}

func (p *Pipe) put(b *[]byte) {
	*b = (*b)[:bufferSize]
	buffers.Put(b)
}

// End is called by the writer, once; the reader gets err after the bytes, with
// nil io.EOF.
func (p *Pipe) End(err error) {
	p.err = err
	if err == nil {
		p.err = io.EOF
	}
	close(p.full)
}

// Read implements io.Reader.
func (p *Pipe) Read(to []byte) (int, error) {
	for len(p.left) == 0 {
		if p.taken != nil {
			p.put(p.taken)
			p.taken = nil
		}
		b, ok := <-p.full
		if !ok {
			return 0, p.err
		}
		p.taken, p.left = b, *b
	}
	n := copy(to, p.left)
	p.left = p.left[n:]
	return n, nil
}

// Close is called by the reader when it wants no more. What was written is
// dropped. It may be called twice.
func (p *Pipe) Close() {
	p.once.Do(func() { close(p.closed) })
}
