package logs

import (
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// fragmentWait is how long the beginning of a line waits in the FIFO for its
// end before it is written with tag P. It lets lines that are written in
// pieces stay whole, and shows a prompt soon.
const fragmentWait = time.Second

// A pump carries one stream of output from its FIFO into the log file and to
// the clients. Its fields belong to the goroutine of run.
type pump struct {
	io     *IO
	stream string
	path   string
	fifo   *os.File
	raw    syscall.RawConn

	seen  int  // bytes at the FIFO's head that the clients have and the log has not
	timed bool // a deadline is set for the fragment at the FIFO's head

	// Set by look.
	batch *batch
	n     int  // bytes in batch.in
	flush bool // a fragment at the end is to be written now
	eof   bool // there is nothing after these bytes
	err   error
}

// open opens both ends; the write end is the keeper. Opened in this order, the
// read end sees the hang-up after the last writer.
func (p *pump) open() (keeper *os.File, err error) {
	if p.fifo, err = openFIFO(p.path, unix.O_RDONLY); err != nil {
		return nil, err
	}
	if p.raw, err = p.fifo.SyscallConn(); err != nil {
		return nil, err
	}
	return openFIFO(p.path, unix.O_WRONLY)
}

func (p *pump) run() {
	defer p.io.wg.Done()
	err := p.carry()
	if err != nil && !p.io.closed.Load() {
		p.io.warn("output cannot be read any more", "stream", p.stream, "err", err)
	}
	if err := p.close(); err != nil {
		p.io.warn("closing a FIFO failed", "stream", p.stream, "err", err)
	}
	p.io.ended(err == nil)
}

// close closes the FIFO, if it is open.
func (p *pump) close() error {
	if p.fifo == nil {
		return nil
	}
	if err := p.fifo.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// carry returns nil at the end of output.
func (p *pump) carry() error {
	look := p.look // one closure for all reads
	for !p.eof {
		p.n, p.flush = 0, false
		err := p.raw.Read(look)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if err := p.deadline(false); err != nil {
				return err
			}
			p.flush = true
			err = p.raw.Read(look)
		}
		if err == nil {
			err = p.err
		}
		if err == nil && p.n > 0 {
			err = p.move()
		}
		if p.batch != nil {
			p.batch.give()
			p.batch = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// look takes a batch if there is something new to carry; false means wait. It
// runs with the descriptor locked.
func (p *pump) look(fd uintptr) bool {
	avail, err := available(int(fd))
	if err == nil && avail <= p.seen && !p.flush {
		var hup bool
		if hup, err = hungUp(int(fd)); err == nil && !hup {
			return false
		}
		if err == nil { // nobody adds to it any more: this count is final
			avail, err = available(int(fd))
			p.eof = avail <= p.seen
			p.flush = p.eof
		}
	}
	if err == nil && avail > 0 {
		if p.batch, err = takeBatch(); err == nil {
			p.n, err = p.batch.peek(int(fd), batchSize)
		}
	}
	// A FIFO full of tiny buffers can hide new bytes behind a fragment.
	p.flush = p.flush || p.n <= p.seen
	p.err = err
	return true
}

// move writes the batch's lines and takes them out of the FIFO.
func (p *pump) move() error {
	data := p.batch.in[:p.n]
	if len(data) > p.seen {
		p.io.clients.send(p.stream, data[p.seen:])
	}
	took := len(data)
	if p.io.file.wanted() {
		p.batch.out, took = appendEntries(p.batch.out[:0], data, p.stream, time.Now(), p.flush)
	}
	fragment := len(data) - took
	if took > 0 {
		if err := p.io.file.commit(p, data[:took]); err != nil {
			return err
		}
	}
	fresh := took > 0 || p.seen == 0
	p.seen = fragment
	if fragment == 0 || fresh {
		return p.deadline(fragment > 0)
	}
	return nil
}

// deadline sets or clears the deadline of the fragment at the FIFO's head.
func (p *pump) deadline(on bool) error {
	var at time.Time
	if on {
		at = time.Now().Add(fragmentWait)
	} else if !p.timed {
		return nil
	}
	p.timed = on
	return p.fifo.SetReadDeadline(at)
}

// discard takes n bytes out of the FIFO, unless it was closed.
func (p *pump) discard(n int) error {
	var failed error
	if err := p.raw.Control(func(fd uintptr) { failed = p.batch.discard(int(fd), n) }); err != nil {
		return err
	}
	return failed
}

// number is the stream's place in a cursor.
func (p *pump) number() uint32 {
	if p.stream == stderr {
		return 2
	}
	return 1
}

// takeAgain takes the bytes of a move that was written out of the FIFO, if
// they are still there. It is called before run.
func (p *pump) takeAgain(m move) error {
	b, err := takeBatch()
	if err != nil {
		return err
	}
	defer b.give()
	var failed error
	err = p.raw.Control(func(fd uintptr) {
		avail, err := available(int(fd))
		if err != nil || avail < int(m.taken) || m.taken > batchSize {
			failed = err
			return
		}
		n, err := b.peek(int(fd), int(m.taken))
		if err != nil || n < int(m.taken) || checksum(b.in[:n]) != m.sum {
			failed = err
			return
		}
		failed = b.discard(int(fd), n)
	})
	return errors.Join(err, failed)
}
