//go:build go1.26

package libseccomp

import (
	"cmp"
	"errors"
	"slices"

	seccomp "berth.libseccomp"
)

// errNotOurs leaves a filter to libseccomp.
var errNotOurs = errors.New("a filter that libseccomp compiles")

// x32Bit marks the numbers of x32, whose architecture is x86-64's otherwise.
const x32Bit = 1 << 30

// returns are the values of actions for the kernel, without their code.
var returns = map[ScmpAction]uint32{
	ActKillThread: 0, ActKillProcess: 0x8000_0000, ActTrap: 0x0003_0000,
	ActErrno: 0x0005_0000, ActTrace: 0x7ff0_0000, ActLog: 0x7ffc_0000, ActAllow: 0x7fff_0000,
}

// killThread is what happens to a system call of an architecture that the
// filter does not name.
const killThread uint32 = 0

// audit are AUDIT_ARCH_* of the architectures that are compiled here, all of
// them little-endian.
var audit = map[ScmpArch]uint32{
	ArchX86: 0x4000_0003, ArchAMD64: 0xc000_003e, ArchX32: 0xc000_003e, ArchARM: 0x4000_0028, ArchARM64: 0xc000_00b7,
}

// compile makes the program. errNotOurs: libseccomp is to do it.
func (f *ScmpFilter) compile() (*program, error) {
	deny, err := f.returned(f.deny)
	if err != nil {
		return nil, err
	}
	calls := map[ScmpArch]map[uint32]*decision{}
	for _, arch := range f.archs {
		if audit[arch] == 0 {
			return nil, errNotOurs
		}
		if calls[arch], err = f.decisions(arch); err != nil {
			return nil, err
		}
	}
	p := &program{}
	next := p.action(killThread)
	for i := len(f.archs) - 1; i >= 0; i-- {
		arch := f.archs[i]
		other, both := calls[ArchAMD64], calls[ArchX32] != nil
		if arch == ArchX32 && other != nil {
			continue // with x86-64
		}
		var list []span
		switch {
		case arch == ArchAMD64 && both:
			list = spans(calls[arch], 0, deny)
			list = append(list, spans(calls[ArchX32], x32Bit, deny)...)
		case arch == ArchAMD64:
			// -1 is how a tracer has a system call skipped.
			list = append(spans(calls[arch], 0, deny), span{from: x32Bit, ret: killThread}, span{from: 1<<32 - 1, ret: deny})
		case arch == ArchX32:
			list = append([]span{{ret: killThread}}, spans(calls[arch], x32Bit, deny)...)
		default:
			list = spans(calls[arch], 0, deny)
		}
		block := p.load(offNumber, p.search(merge(list), deny))
		next = p.jump(jumpEqual, audit[arch], block, next)
	}
	p.load(offArch, next)
	return p, p.check()
}

// returned is what the kernel is told by an action.
func (f *ScmpFilter) returned(a ScmpAction) (uint32, error) {
	ret, ok := returns[a&0xffff]
	if !ok {
		return 0, errNotOurs
	}
	if kind := a & 0xffff; kind == ActErrno || kind == ActTrace {
		ret |= uint32(uint16(a.GetReturnCode()))
	}
	return ret, nil
}

// A decision is what is done at one system call: always, or where one of the
// alternatives holds.
type decision struct {
	ret    uint32
	always bool
	any    [][]ScmpCondition
	wide   bool // arguments have 64 bits
}

func wide(arch ScmpArch) bool { return arch == ArchAMD64 || arch == ArchARM64 }

// decisions are those of one architecture, by its numbers.
func (f *ScmpFilter) decisions(arch ScmpArch) (map[uint32]*decision, error) {
	made := map[uint32]*decision{}
	for _, r := range f.rules {
		ret, err := f.returned(r.action)
		if err != nil {
			return nil, err
		}
		if !wide(arch) && slices.ContainsFunc(r.conds, beyond32) {
			return nil, errNotOurs
		}
		calls, err := f.translate(r, arch)
		if err != nil {
			return nil, err
		}
		for _, c := range calls {
			d := made[c.number]
			if d == nil {
				d = &decision{ret: ret, wide: wide(arch)}
				made[c.number] = d
			}
			if d.ret != ret || !once(c.conds) {
				return nil, errNotOurs
			}
			d.always = d.always || len(c.conds) == 0
			d.any = append(d.any, c.conds)
		}
	}
	return made, nil
}

// beyond32 tells a comparison whose meaning is not plain where arguments have
// 32 bits.
func beyond32(c ScmpCondition) bool { return c.Operand1>>32 != 0 || c.Operand2>>32 != 0 }

// once tells whether each argument is looked at at most once: libseccomp
// refuses others.
func once(conds []ScmpCondition) bool {
	seen := [6]bool{}
	for _, c := range conds {
		if c.Argument > 5 || seen[c.Argument] {
			return false
		}
		seen[c.Argument] = true
	}
	return true
}

// A call is a system call of one architecture, under conditions.
type call struct {
	number uint32
	conds  []ScmpCondition
}

// translate gives the system calls of an architecture that a rule is about:
// none where it has none of that name.
func (f *ScmpFilter) translate(r rule, arch ScmpArch) ([]call, error) {
	number := r.call
	if arch != f.native {
		name, err := r.call.GetNameByArch(f.native)
		if err != nil {
			return nil, errNotOurs
		}
		if number, err = seccomp.GetSyscallFromNameByArch(name, arch); err != nil {
			return nil, nil // it has none
		}
	}
	if arch == ArchX86 {
		return multiplexed(number, r.conds)
	}
	if number < 0 {
		return nil, nil // a number of libseccomp's own: it has none
	}
	return []call{{uint32(number), r.conds}}, nil
}

// On x86 what is about sockets and System V IPC has a system call of its own
// since Linux 4.3, and was and is called through one of these two before.
const (
	socketcall = 102
	ipc        = 117
)

// direct are the numbers of their own; the key is the negative number that
// libseccomp gives, a hundred for socketcall and two for ipc.
var direct = map[ScmpSyscall]uint32{
	-101: 359, -102: 361, -103: 362, -104: 363, -106: 367, -107: 368, -108: 360, -111: 369, -112: 371, -113: 373,
	-114: 366, -115: 365, -116: 370, -117: 372, -118: 364,
	-119: 337, -120: 345,
	-202: 393, -203: 394, -211: 400, -212: 401, -213: 399, -214: 402, -221: 397, -222: 398, -223: 395, -224: 396,
}

// multiplexed gives both ways to what x86 has two for.
func multiplexed(number ScmpSyscall, conds []ScmpCondition) ([]call, error) {
	for negative, own := range direct {
		if number == ScmpSyscall(own) {
			number = negative
		}
	}
	if number >= 0 {
		return []call{{uint32(number), conds}}, nil
	}
	through := uint32(0)
	switch {
	case number <= -100 && number > -200:
		through = socketcall
	case number <= -200 && number > -300:
		through = ipc
	default:
		return nil, nil // it has none
	}
	if len(conds) > 0 && through == ipc {
		return nil, errNotOurs
	}
	which := ScmpCondition{Argument: 0, Op: CompareEqual, Operand1: uint64(-number % 100)}
	others := slices.DeleteFunc(slices.Clone(conds), func(c ScmpCondition) bool { return c.Argument == 0 })
	calls := []call{{through, append([]ScmpCondition{which}, others...)}}
	if own, ok := direct[number]; ok {
		calls = append(calls, call{own, conds})
	}
	return calls, nil
}

// A span is numbers of system calls from one on, and what is done at them:
// what d says, or ret where there is none.
type span struct {
	from uint32
	ret  uint32
	d    *decision
}

// spans covers the numbers from from on.
func spans(calls map[uint32]*decision, from, deny uint32) []span {
	numbers := make([]uint32, 0, len(calls))
	for n := range calls {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	list := []span{{from: from, ret: deny}}
	for _, n := range numbers {
		s := span{from: n, ret: calls[n].ret}
		if !calls[n].always {
			s.d = calls[n]
		}
		list = append(list, s, span{from: n + 1, ret: deny})
	}
	return list
}

// merge joins spans of which the same is done, and drops those of nothing.
func merge(list []span) []span {
	slices.SortStableFunc(list, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var merged []span
	for i, s := range list {
		if i+1 < len(list) && list[i+1].from == s.from {
			continue
		}
		if n := len(merged); n > 0 && s.d == nil && merged[n-1].d == nil && merged[n-1].ret == s.ret {
			continue
		}
		merged = append(merged, s)
	}
	return merged
}
