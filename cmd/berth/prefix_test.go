package main

import (
	"bytes"
	"strings"
	"sync"
	"testing"
)

func TestPrefixWriter(t *testing.T) {
	long := strings.Repeat("x", maxPrefixed)
	for _, test := range []struct {
		name, want string
		in         []string
	}{
		{"an empty line and no end", "[c] one\n[c] two\n[c] \n[c] end\n", []string{"one\ntw", "o\n", "\n", "end"}},
		{"lines", "[c] a\n[c] \n[c] b\n", []string{"a\n\nb\n"}},
		{"pieces", "[c] ab\n[c] cd\n", []string{"a", "b\nc", "d"}},
		{"as long as may be", "[c] " + long + "\n[c] a\n", []string{long, "\na\n"}},
		{"longer", "[c] " + long + "\n[c] … " + long + "\n[c] … a\n[c] b\n", []string{long + long + "a\nb\n"}},
		{"longer, in pieces", "[c] " + long + "\n[c] … a\n", []string{long[1:], "x", "a"}},
	} {
		var out bytes.Buffer
		p := &prefixWriter{mu: new(sync.Mutex), w: &out, name: "c"}
		for _, s := range test.in {
			if n, err := p.Write([]byte(s)); n != len(s) || err != nil {
				t.Errorf("%s: %d, %v", test.name, n, err)
			}
		}
		if err := p.flush(); err != nil {
			t.Error(err)
		}
		if out.String() != test.want {
			t.Errorf("%s: %d bytes %.60q, want %d bytes %.60q", test.name, out.Len(), out.String(), len(test.want), test.want)
		}
	}
}

// What is kept of output without an end of line is bounded, and each byte is
// looked at once: 64 MiB in pieces of a log's size would take minutes else.
func TestPrefixWriterIsBounded(t *testing.T) {
	var out bytes.Buffer
	p := &prefixWriter{mu: new(sync.Mutex), w: &out, name: "c"}
	piece := bytes.Repeat([]byte("x"), 16<<10)
	for range 4096 {
		if _, err := p.Write(piece); err != nil {
			t.Fatal(err)
		}
		out.Reset()
		if cap(p.rest) > 4*maxPrefixed {
			t.Fatalf("%d bytes are kept", cap(p.rest))
		}
	}
}
