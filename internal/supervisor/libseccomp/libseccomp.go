//go:build go1.26

// Package libseccomp stands for libseccomp-golang in the supervisor, and makes
// seccomp filters in a fraction of its time.
//
// libcontainer makes a container's filter anew in the init of each container
// and of each executed command. libseccomp takes some 15 ms for Kubernetes'
// default profile, which was half of what a start took. Here the filters that
// are common are compiled by a small compiler (compile.go, program.go) in less
// than one, and to a program that is shorter, so that system calls of the
// container cost less, too. All others are left to libseccomp.
//
// It has what libcontainer uses and nothing else, under the same import path,
// by a replace directive in berth's go.mod. The library itself is linked as
// berth.libseccomp, a name that sorts before protobuf's: Go initializes
// packages in that order, and libcontainer's init is to go first
// (internal/supervisor/entry). Names and numbers of system calls are its own.
//
// Invariants:
//   - A filter decides as libseccomp's of the same rules does, for every
//     architecture, number and argument. The tests compare the two.
//   - What is not certain to be compiled alike is left to libseccomp: other
//     architectures, notifications, rules of one system call with different
//     actions, comparisons that 32 bits cannot hold.
//
// Concurrency: a filter is used by one goroutine.
package libseccomp

import (
	"errors"
	"fmt"
	"os"
	"slices"

	seccomp "berth.libseccomp"
)

// What is the library's own.
type (
	ScmpArch      = seccomp.ScmpArch
	ScmpAction    = seccomp.ScmpAction
	ScmpCompareOp = seccomp.ScmpCompareOp
	ScmpCondition = seccomp.ScmpCondition
	ScmpSyscall   = seccomp.ScmpSyscall
	VersionError  = seccomp.VersionError
)

const (
	ArchNative      = seccomp.ArchNative
	ArchX86         = seccomp.ArchX86
	ArchAMD64       = seccomp.ArchAMD64
	ArchX32         = seccomp.ArchX32
	ArchARM         = seccomp.ArchARM
	ArchARM64       = seccomp.ArchARM64
	ArchMIPS        = seccomp.ArchMIPS
	ArchMIPS64      = seccomp.ArchMIPS64
	ArchMIPS64N32   = seccomp.ArchMIPS64N32
	ArchMIPSEL      = seccomp.ArchMIPSEL
	ArchMIPSEL64    = seccomp.ArchMIPSEL64
	ArchMIPSEL64N32 = seccomp.ArchMIPSEL64N32
	ArchPPC         = seccomp.ArchPPC
	ArchPPC64       = seccomp.ArchPPC64
	ArchPPC64LE     = seccomp.ArchPPC64LE
	ArchS390        = seccomp.ArchS390
	ArchS390X       = seccomp.ArchS390X
	ArchRISCV64     = seccomp.ArchRISCV64
	ArchLOONGARCH64 = seccomp.ArchLOONGARCH64

	ActInvalid     = seccomp.ActInvalid
	ActKillThread  = seccomp.ActKillThread
	ActTrap        = seccomp.ActTrap
	ActNotify      = seccomp.ActNotify
	ActErrno       = seccomp.ActErrno
	ActTrace       = seccomp.ActTrace
	ActAllow       = seccomp.ActAllow
	ActLog         = seccomp.ActLog
	ActKillProcess = seccomp.ActKillProcess

	CompareInvalid      = seccomp.CompareInvalid
	CompareNotEqual     = seccomp.CompareNotEqual
	CompareLess         = seccomp.CompareLess
	CompareLessOrEqual  = seccomp.CompareLessOrEqual
	CompareEqual        = seccomp.CompareEqual
	CompareGreaterEqual = seccomp.CompareGreaterEqual
	CompareGreater      = seccomp.CompareGreater
	CompareMaskedEqual  = seccomp.CompareMaskedEqual
)

// GetAPI is the library's.
func GetAPI() (uint, error) { return seccomp.GetAPI() }

// GetLibraryVersion is the library's.
func GetLibraryVersion() (major, minor, micro uint) { return seccomp.GetLibraryVersion() }

// GetNativeArch is the library's.
func GetNativeArch() (ScmpArch, error) { return seccomp.GetNativeArch() }

// GetArchFromString is the library's.
func GetArchFromString(arch string) (ScmpArch, error) { return seccomp.GetArchFromString(arch) }

// GetSyscallFromName is the library's.
func GetSyscallFromName(name string) (ScmpSyscall, error) { return seccomp.GetSyscallFromName(name) }

// GetSyscallFromNameByArch is the library's.
func GetSyscallFromNameByArch(name string, arch ScmpArch) (ScmpSyscall, error) {
	return seccomp.GetSyscallFromNameByArch(name, arch)
}

// MakeCondition is the library's.
func MakeCondition(arg uint, comparison ScmpCompareOp, values ...uint64) (ScmpCondition, error) {
	return seccomp.MakeCondition(arg, comparison, values...)
}

// A ScmpFilter is a filter in the making. Its attributes are kept by
// libseccomp, its rules here until it is exported.
type ScmpFilter struct {
	lib    *seccomp.ScmpFilter
	native ScmpArch
	deny   ScmpAction // what is done where no rule matches
	archs  []ScmpArch // the native one first, none twice
	rules  []rule
}

// A rule has the number of a system call on the native architecture.
type rule struct {
	call   ScmpSyscall
	action ScmpAction
	conds  []ScmpCondition // all must hold
}

// NewFilter makes a filter of no rules for the native architecture.
func NewFilter(defaultAction ScmpAction) (*ScmpFilter, error) {
	lib, err := seccomp.NewFilter(defaultAction)
	if err != nil {
		return nil, err
	}
	native, err := seccomp.GetNativeArch()
	if err != nil {
		lib.Release()
		return nil, err
	}
	return &ScmpFilter{lib: lib, native: native, deny: defaultAction, archs: []ScmpArch{native}}, nil
}

// library is libseccomp's filter; that of a zero filter refuses everything.
func (f *ScmpFilter) library() *seccomp.ScmpFilter {
	if f.lib == nil {
		return &seccomp.ScmpFilter{}
	}
	return f.lib
}

// AddArch adds an architecture that the rules are for.
func (f *ScmpFilter) AddArch(arch ScmpArch) error {
	if err := f.library().AddArch(arch); err != nil {
		return err
	}
	if arch != ArchNative && !slices.Contains(f.archs, arch) {
		f.archs = append(f.archs, arch)
	}
	return nil
}

// SetOptimize is for what libseccomp compiles.
func (f *ScmpFilter) SetOptimize(level int) error { return f.library().SetOptimize(level) }

// SetNoNewPrivsBit, and what follows, keep attributes for who loads the filter.
func (f *ScmpFilter) SetNoNewPrivsBit(on bool) error { return f.library().SetNoNewPrivsBit(on) }

// SetLogBit has actions logged.
func (f *ScmpFilter) SetLogBit(on bool) error { return f.library().SetLogBit(on) }

// SetSSB leaves speculative store bypass on.
func (f *ScmpFilter) SetSSB(on bool) error { return f.library().SetSSB(on) }

// SetWaitKill makes waits for a notification end only by fatal signals.
func (f *ScmpFilter) SetWaitKill(on bool) error { return f.library().SetWaitKill(on) }

// GetNoNewPrivsBit is what SetNoNewPrivsBit said.
func (f *ScmpFilter) GetNoNewPrivsBit() (bool, error) { return f.library().GetNoNewPrivsBit() }

// GetLogBit is what SetLogBit said.
func (f *ScmpFilter) GetLogBit() (bool, error) { return f.library().GetLogBit() }

// GetSSB is what SetSSB said.
func (f *ScmpFilter) GetSSB() (bool, error) { return f.library().GetSSB() }

// GetWaitKill is what SetWaitKill said.
func (f *ScmpFilter) GetWaitKill() (bool, error) { return f.library().GetWaitKill() }

// AddRule adds what is done at a system call. What libseccomp refuses about a
// rule is said at the latest by ExportBPF.
func (f *ScmpFilter) AddRule(call ScmpSyscall, action ScmpAction) error {
	return f.AddRuleConditional(call, action, nil)
}

// AddRuleConditional adds what is done where all conditions hold.
func (f *ScmpFilter) AddRuleConditional(call ScmpSyscall, action ScmpAction, conds []ScmpCondition) error {
	if f.lib == nil {
		return errors.New("a filter is made by NewFilter")
	}
	if action == f.deny {
		return fmt.Errorf("system call %d: the action is the default one", call)
	}
	f.rules = append(f.rules, rule{call, action, slices.Clone(conds)})
	return nil
}

// ExportBPF writes the filter's program.
func (f *ScmpFilter) ExportBPF(file *os.File) error {
	program, err := f.compile()
	if errors.Is(err, errNotOurs) {
		return f.exportByLibrary(file)
	}
	if err != nil {
		return err
	}
	_, err = file.Write(program.bytes())
	return err
}

// exportByLibrary has libseccomp compile the rules.
func (f *ScmpFilter) exportByLibrary(file *os.File) error {
	for _, r := range f.rules {
		if err := f.lib.AddRuleConditional(r.call, r.action, r.conds); err != nil {
			return fmt.Errorf("system call %d: %w", r.call, err)
		}
	}
	return f.lib.ExportBPF(file)
}
