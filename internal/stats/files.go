package stats

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// A buffer is memory to read files into. What read returns is valid until the
// next read.
type buffer struct{ data []byte }

var buffers = sync.Pool{New: func() any { return &buffer{make([]byte, 16<<10)} }}

func borrow() *buffer { return buffers.Get().(*buffer) }

func (b *buffer) giveBack() { buffers.Put(b) }

// read returns the whole of a file, with as few system calls as can be: these
// files are many, small, and never block.
func (b *buffer) read(path string) ([]byte, error) {
	var fd int
	var err error
	for {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for n := 0; ; {
		if n == len(b.data) {
			b.data = append(b.data, make([]byte, len(b.data))...)
		}
		got, err := unix.Read(fd, b.data[n:])
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

// number reads a file that holds one number, or "max", which is unlimited.
func (b *buffer) number(path string) (uint64, error) {
	data, err := b.read(path)
	if err != nil {
		return 0, err
	}
	data = bytes.TrimSpace(data)
	if string(data) == "max" {
		return unlimited, nil
	}
	n, err := strconv.ParseUint(string(data), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

// A field is a wanted line "name value" of a file and where its value goes.
type field struct {
	name  string
	value *uint64
	found bool
}

// fields reads lines "name value". What is not there keeps its value.
func fields(data []byte, wanted []field) error {
	left := len(wanted)
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
		for i := range wanted {
			f := &wanted[i]
			if f.found || string(line[:space]) != f.name {
				continue
			}
			n, err := strconv.ParseUint(string(line[space+1:]), 10, 64)
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
