package main

import (
	"bytes"
	"io"
	"sync"
)

// maxPrefixed bounds what is kept of a line whose end has not come.
const maxPrefixed = 64 << 10

// A prefixWriter writes whole lines, each with a name before it. A line that is
// longer than maxPrefixed comes in pieces, all but the first with a mark.
type prefixWriter struct {
	mu   *sync.Mutex // guards w, which others write to
	w    io.Writer
	name string

	rest      []byte // of a line whose end has not come
	continues bool   // rest is not the line's first piece
}

// Write implements io.Writer.
func (p *prefixWriter) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		next, _, ended := bytes.Cut(b[done:], []byte("\n"))
		if room := maxPrefixed - len(p.rest); len(next) > room {
			next, ended = next[:room], false
			p.rest = append(p.rest, next...)
			if err := p.emit(true); err != nil {
				return done, err
			}
		} else {
			p.rest = append(p.rest, next...)
		}
		done += len(next)
		if ended {
			done++
			if err := p.emit(false); err != nil {
				return done, err
			}
		}
	}
	return len(b), nil
}

// flush writes a last line that has no end.
func (p *prefixWriter) flush() error {
	if len(p.rest) == 0 {
		return nil
	}
	return p.emit(false)
}

// emit writes what there is of a line; more says that it goes on.
func (p *prefixWriter) emit(more bool) error {
	line := make([]byte, 0, len(p.name)+len(p.rest)+len("[] … \n"))
	line = append(append(append(line, '['), p.name...), "] "...)
	if p.continues {
		line = append(line, "… "...)
	}
	line = append(append(line, p.rest...), '\n')
	p.rest, p.continues = p.rest[:0], more
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.w.Write(line)
	return err
}
