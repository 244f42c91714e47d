//go:build go1.26

package libseccomp

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

// run decides as the kernel does with a program and a system call's data.
func run(t *testing.T, program []byte, arch, number uint32, args [6]uint64) uint32 {
	t.Helper()
	data := binary.LittleEndian.AppendUint32(nil, number)
	data = binary.LittleEndian.AppendUint32(data, arch)
	data = binary.LittleEndian.AppendUint64(data, 0)
	for _, a := range args {
		data = binary.LittleEndian.AppendUint64(data, a)
	}
	var acc uint32
	for pc := 0; 8*pc < len(program); pc++ {
		in := program[8*pc:]
		code, jt, jf, k := binary.NativeEndian.Uint16(in), in[2], in[3], binary.NativeEndian.Uint32(in[4:])
		yes := false
		switch code {
		case loadWord:
			acc = binary.LittleEndian.Uint32(data[k:])
			continue
		case andConstant:
			acc &= k
			continue
		case returnConstant:
			return k
		case jumpAlways:
			pc += int(k)
			continue
		case jumpEqual:
			yes = acc == k
		case jumpGreater:
			yes = acc > k
		case jumpGreaterEqual:
			yes = acc >= k
		default:
			t.Fatalf("instruction %#x", code)
		}
		if yes {
			pc += int(jt)
		} else {
			pc += int(jf)
		}
	}
	t.Fatal("the program has no end")
	return 0
}

func exported(t *testing.T, export func(*os.File) error) []byte {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "bpf")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := export(f); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// compareAll asks our program and libseccomp's of the same rules about every
// number near those of system calls, for each architecture, with arguments at
// and beside what is compared with.
func compareAll(t *testing.T, f *ScmpFilter) {
	t.Helper()
	p, err := f.compile()
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := p.bytes(), exported(t, f.exportByLibrary)
	values := []uint64{0, 1, 1<<32 - 1, 1 << 32, 1<<64 - 1}
	for _, r := range f.rules {
		for _, c := range r.conds {
			for _, v := range []uint64{c.Operand1, c.Operand2, c.Operand1 &^ (c.Operand1 - 1)} {
				values = append(values, v, v-1, v+1, v|1<<40, ^v)
			}
		}
	}
	slices.Sort(values)
	values = slices.Compact(values)
	random := rand.New(rand.NewPCG(1, 2))
	for _, arch := range []uint32{0x4000_0003, 0xc000_003e, 0x4000_0028, 0xc000_00b7, 0x8000_0016, 0} {
		for _, base := range []uint32{0, x32Bit, 0xf_0000, 1 << 31, 1<<32 - 8} {
			for n := uint32(0); n < 600 && base+n >= base; n++ {
				for range 8 {
					var args [6]uint64
					for i := range args {
						args[i] = values[random.IntN(len(values))]
						if random.IntN(4) == 0 {
							args[i] = random.Uint64N(24)
						}
						if arch>>31 == 0 { // as the kernel gives them
							args[i] &= 1<<32 - 1
						}
					}
					got, want := run(t, ours, arch, base+n, args), run(t, theirs, arch, base+n, args)
					if got != want {
						t.Fatalf("architecture %#x, system call %#x, arguments %#x: %#x, libseccomp's: %#x", arch, base+n, args, got, want)
					}
				}
			}
		}
	}
	t.Logf("%d bytes, libseccomp's: %d", len(ours), len(theirs))
}

func newFilter(t testing.TB, deny ScmpAction, archs ...ScmpArch) *ScmpFilter {
	t.Helper()
	f, err := NewFilter(deny)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range archs {
		if err := f.AddArch(a); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func add(t testing.TB, f *ScmpFilter, name string, action ScmpAction, conds ...ScmpCondition) {
	t.Helper()
	call, err := GetSyscallFromName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.AddRuleConditional(call, action, conds); err != nil {
		t.Fatal(err)
	}
}

var (
	errno  = ActErrno.SetReturnCode(1)
	enosys = ActErrno.SetReturnCode(38)
)

// many are names as a default profile has them, of all kinds of numbers.
func many() []string {
	var names []string
	for n := ScmpSyscall(-11000); n < 470; n++ {
		if name, err := n.GetName(); err == nil && int(n)%7 != 3 && name != "clone3" {
			names = append(names, name)
		}
	}
	return append(names, "socketcall", "ipc", "semget", "shmat", "accept", "send", "recv")
}

func archSets() map[string][]ScmpArch {
	return map[string][]ScmpArch{
		"native": nil, "x86": {ArchX86}, "all of x86": {ArchAMD64, ArchX86, ArchX32}, "x32": {ArchX32},
		"arm": {ArchARM64, ArchARM}, "all": {ArchARM, ArchX32, ArchX86, ArchARM64, ArchAMD64},
	}
}

func TestAsLibseccomp(t *testing.T) {
	native, err := GetNativeArch()
	if err != nil {
		t.Fatal(err)
	}
	if native != ArchAMD64 && native != ArchARM64 {
		t.Skipf("filters of %s are left to libseccomp", native)
	}
	is := func(arg uint, op ScmpCompareOp, a, b uint64) ScmpCondition {
		return ScmpCondition{Argument: arg, Op: op, Operand1: a, Operand2: b}
	}
	filters := map[string]func(*ScmpFilter){
		"nothing": func(*ScmpFilter) {},
		"one":     func(f *ScmpFilter) { add(t, f, "read", ActAllow) },
		"many": func(f *ScmpFilter) {
			for _, name := range many() {
				add(t, f, name, ActAllow)
			}
			add(t, f, "clone3", enosys)
		},
		"conditions": func(f *ScmpFilter) {
			for _, v := range []uint64{0, 8, 0x20000, 0x20008, 0xffffffff} {
				add(t, f, "personality", ActAllow, is(0, CompareEqual, v, 0))
			}
			add(t, f, "clone", ActAllow, is(0, CompareMaskedEqual, 0x7e020000, 0))
			add(t, f, "read", ActAllow, is(0, CompareNotEqual, 40, 0), is(2, CompareLess, 7, 0))
			add(t, f, "write", ActAllow, is(1, CompareGreater, 9, 0))
			add(t, f, "write", ActAllow, is(1, CompareLessOrEqual, 3, 0), is(5, CompareGreaterEqual, 4, 0))
			add(t, f, "lseek", ActAllow, is(1, CompareMaskedEqual, 6, 0xff))
			add(t, f, "getpid", ActAllow, is(1, CompareEqual, 6, 0))
			add(t, f, "getpid", ActAllow)
		},
		"sockets": func(f *ScmpFilter) {
			add(t, f, "socket", ActAllow, is(0, CompareNotEqual, 40, 0))
			for _, name := range []string{"bind", "accept", "accept4", "send", "shmget", "semop", "semtimedop"} {
				add(t, f, name, ActAllow)
			}
		},
	}
	for archs, list := range archSets() {
		for name, rules := range filters {
			for _, deny := range []ScmpAction{errno, ActKillProcess, ActLog} {
				t.Run(fmt.Sprintf("%s/%s/%x", archs, name, deny), func(t *testing.T) {
					t.Parallel()
					f := newFilter(t, deny, list...)
					rules(f)
					compareAll(t, f)
				})
			}
		}
	}
}

func TestWide(t *testing.T) {
	for op := CompareNotEqual; op <= CompareMaskedEqual; op++ {
		f := newFilter(t, ActKillThread)
		add(t, f, "read", ActAllow, ScmpCondition{Argument: 3, Op: op, Operand1: 0x5_0000_0007, Operand2: 0x4_0000_0006})
		add(t, f, "write", ActTrap, ScmpCondition{Argument: 3, Op: op, Operand1: 1 << 63, Operand2: 1 << 63})
		compareAll(t, f)
	}
}

// TestLeft has filters that are libseccomp's to make.
func TestLeft(t *testing.T) {
	cond := ScmpCondition{Op: CompareEqual, Operand1: 7}
	for name, rules := range map[string]func(f *ScmpFilter){
		"notify":            func(f *ScmpFilter) { add(t, f, "read", ActNotify) },
		"different actions": func(f *ScmpFilter) { add(t, f, "read", ActAllow, cond); add(t, f, "read", enosys) },
		"architecture":      func(f *ScmpFilter) { _ = f.AddArch(ArchMIPSEL64); add(t, f, "read", ActAllow) },
		"64 bits in 32": func(f *ScmpFilter) {
			_ = f.AddArch(ArchX86)
			add(t, f, "read", ActAllow, ScmpCondition{Op: CompareEqual, Operand1: 1 << 40})
		},
	} {
		f := newFilter(t, errno)
		rules(f)
		if _, err := f.compile(); err != errNotOurs {
			t.Errorf("%s: %v, want %v", name, err, errNotOurs)
		}
		lib := newFilter(t, errno)
		rules(lib)
		if got, want := exported(t, f.ExportBPF), exported(t, lib.exportByLibrary); len(got) == 0 || !slices.Equal(got, want) {
			t.Errorf("%s: not the program of libseccomp", name)
		}
	}
	f := newFilter(t, errno)
	if err := f.AddRule(0, errno); err == nil {
		t.Error("a rule of the default action is taken")
	}
}

func BenchmarkExport(b *testing.B) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	for name, export := range map[string]func(*ScmpFilter) error{
		"ours":       func(f *ScmpFilter) error { return f.ExportBPF(null) },
		"libseccomp": func(f *ScmpFilter) error { _ = f.SetOptimize(2); return f.exportByLibrary(null) },
	} {
		b.Run(name, func(b *testing.B) {
			names := many()
			for b.Loop() {
				f := newFilter(b, errno, ArchAMD64, ArchX86, ArchX32)
				for _, name := range names {
					add(b, f, name, ActAllow)
				}
				if err := export(f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
