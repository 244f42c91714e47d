//go:build go1.26

package libseccomp

import (
	"bytes"
	"encoding/binary"
)

// Instructions of the kernel's classic BPF, and offsets in its seccomp_data.
const (
	loadWord         = 0x20
	jumpAlways       = 0x05
	jumpEqual        = 0x15
	jumpGreater      = 0x25
	jumpGreaterEqual = 0x35
	andConstant      = 0x54
	returnConstant   = 0x06

	offNumber = 0
	offArch   = 4
	offArgs   = 16 // of 8 bytes each, the low half first
)

// maxProgram is the kernel's limit, less what libcontainer prepends.
const maxProgram = 4096 - 128

// near is how far a conditional jump goes, less what may come between.
const near = 250

// An instruction is the kernel's struct sock_filter.
type instruction struct {
	Code   uint16
	Jt, Jf uint8
	K      uint32
}

// A program is put together from its end, so that all that is jumped to is
// there already. A place in it is counted from the end.
type program struct {
	reversed []instruction
}

// A target is where a jump goes: a place, or the return of an action, which is
// made anew where the last one is too far.
type target struct {
	place  int
	action bool
	ret    uint32
}

func (p *program) action(ret uint32) target { return target{action: true, ret: ret} }

func (p *program) add(i instruction) target {
	p.reversed = append(p.reversed, i)
	return target{place: len(p.reversed) - 1}
}

// skip is how many instructions one that is added now jumps over to a place.
func (p *program) skip(place int) int { return len(p.reversed) - place - 1 }

// reach gives a place for t that a conditional jump added soon reaches.
func (p *program) reach(t target) int {
	if t.action {
		ret := instruction{Code: returnConstant, K: t.ret}
		for i := len(p.reversed) - 1; i >= 0; i-- {
			if p.skip(i) >= near {
				break
			}
			if p.reversed[i] == ret {
				return i
			}
		}
		return p.add(ret).place
	}
	if p.skip(t.place) < near {
		return t.place
	}
	return p.add(instruction{Code: jumpAlways, K: uint32(p.skip(t.place))}).place
}

// jump goes to yes where what was loaded compares so with k, else to no.
func (p *program) jump(code uint16, k uint32, yes, no target) target {
	y := p.reach(yes)
	n := p.reach(no)
	return p.add(instruction{Code: code, K: k, Jt: uint8(p.skip(y)), Jf: uint8(p.skip(n))})
}

// load loads a word and goes on with then.
func (p *program) load(offset uint32, then target) target {
	p.last(then)
	return p.add(instruction{Code: loadWord, K: offset})
}

// masked takes some bits of what was loaded and goes on with then.
func (p *program) masked(mask uint32, then target) target {
	if mask == 1<<32-1 {
		return then
	}
	p.last(then)
	return p.add(instruction{Code: andConstant, K: mask})
}

// last makes what is added now go on with t.
func (p *program) last(t target) {
	if place := p.reach(t); p.skip(place) > 0 {
		p.add(instruction{Code: jumpAlways, K: uint32(p.skip(place))})
	}
}

// search finds the span of the number that was loaded, by halves.
func (p *program) search(list []span, deny uint32) target {
	if len(list) == 1 {
		if list[0].d == nil {
			return p.action(list[0].ret)
		}
		return p.decide(list[0].d, deny)
	}
	half := len(list) / 2
	above := p.search(list[half:], deny)
	below := p.search(list[:half], deny)
	return p.jump(jumpGreaterEqual, list[half].from, above, below)
}

// decide tries one alternative after another.
func (p *program) decide(d *decision, deny uint32) target {
	next := p.action(deny)
	for i := len(d.any) - 1; i >= 0; i-- {
		yes := p.action(d.ret)
		for j := len(d.any[i]) - 1; j >= 0; j-- {
			yes = p.compare(d.any[i][j], d.wide, yes, next)
		}
		next = yes
	}
	return next
}

// compare goes to yes where an argument is as c says, else to no.
func (p *program) compare(c ScmpCondition, wide bool, yes, no target) target {
	value, mask := c.Operand1, ^uint64(0)
	code := uint16(jumpEqual)
	switch c.Op {
	case CompareNotEqual:
		yes, no = no, yes
	case CompareGreater:
		code = jumpGreater
	case CompareGreaterEqual:
		code = jumpGreaterEqual
	case CompareLess: // not greater or equal
		code = jumpGreaterEqual
		yes, no = no, yes
	case CompareLessOrEqual: // not greater
		code = jumpGreater
		yes, no = no, yes
	case CompareMaskedEqual:
		mask, value = c.Operand1, c.Operand1&c.Operand2
	}
	at := uint32(offArgs + 8*c.Argument)
	low := p.load(at, p.masked(uint32(mask), p.jump(code, uint32(value), yes, no)))
	if !wide {
		return low
	}
	high := uint32(value >> 32)
	same := p.jump(jumpEqual, high, low, no)
	if code != jumpEqual {
		same = p.jump(jumpGreater, high, yes, same)
	}
	return p.load(at+4, p.masked(uint32(mask>>32), same))
}

func (p *program) check() error {
	if len(p.reversed) > maxProgram {
		return errNotOurs
	}
	return nil
}

// bytes is the program as the kernel takes it.
func (p *program) bytes() []byte {
	var b bytes.Buffer
	b.Grow(8 * len(p.reversed))
	for i := len(p.reversed) - 1; i >= 0; i-- {
		in := p.reversed[i]
		b.Write(binary.NativeEndian.AppendUint16(nil, in.Code))
		b.WriteByte(in.Jt)
		b.WriteByte(in.Jf)
		b.Write(binary.NativeEndian.AppendUint32(nil, in.K))
	}
	return b.Bytes()
}
