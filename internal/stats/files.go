package stats

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// A buffer is memory to read files into. What a read returns is valid until the
// next one.
type buffer struct{ data []byte }

var buffers = sync.Pool{New: func() any { return &buffer{make([]byte, 16<<10)} }}

func borrow() *buffer { return buffers.Get().(*buffer) }

func (b *buffer) giveBack() { buffers.Put(b) }

func open(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// read returns the whole of the file at path.
func (b *buffer) read(path string) ([]byte, error) {
	fd, err := open(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd) // of a file that was only read
	return b.readAll(fd)
}

// readAll returns the whole of an open file from its start, with as few system
// calls as can be: these files are many, small, and never block.
func (b *buffer) readAll(fd int) ([]byte, error) {
	for n := 0; ; {
		if n == len(b.data) {
			b.data = append(b.data, make([]byte, len(b.data))...)
		}
		got, err := unix.Pread(fd, b.data[n:], int64(n))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, err
		case got == 0:
			return b.data[:n], nil
		default:
			n += got
			// The kernel gives these files page by page; a part of a page
			// that ends a line is the end.
			if n < 2048 && b.data[n-1] == '\n' {
				return b.data[:n], nil
			}
		}
	}
}

// A field is a wanted line "name value" of a file and where its value goes.
type field struct {
	name  string
	value *uint64
	found bool
}

// fields reads lines "name value". What is not there keeps its value. It is
// quickest where wanted has the order of the file.
func fields(data []byte, wanted []field) error {
	left, next := len(wanted), 0
	for len(data) > 0 && left > 0 {
		line := data
		if end := bytes.IndexByte(data, '\n'); end >= 0 {
			line, data = data[:end], data[end+1:]
		} else {
			data = nil
		}
		space := bytes.IndexByte(line, ' ')
		if space < 0 {
			continue
		}
		for range wanted {
			f := &wanted[next]
			if next++; next == len(wanted) {
				next = 0
			}
			if f.found || string(line[:space]) != f.name {
				continue
			}
			n, err := parseUint(line[space+1:])
			if err != nil {
				return fmt.Errorf("line %q: %w", line, err)
			}
			*f.value, f.found = n, true
			left--
			break
		}
	}
	return nil
}
