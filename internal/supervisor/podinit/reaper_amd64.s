#include "textflag.h"

// The whole program that stays as PID 1; see program.go. It is copied from
// here, so it holds no address. Before it starts SIGCHLD, SIGTERM and SIGINT are
// blocked already, but in a sandbox container.
TEXT reaper<>(SB), NOSPLIT|NOFRAME, $0
	MOVQ $0x14002, AX // the set of SIGINT, SIGTERM, SIGCHLD
	PUSHQ AX
	MOVL $14, AX // rt_sigprocmask(SIG_BLOCK, &set, nil, 8)
	XORL DI, DI
	MOVQ SP, SI
	XORL DX, DX
	MOVL $8, R10
	SYSCALL
reap:
	MOVL $61, AX // wait4(-1, nil, WNOHANG, nil)
	MOVQ $-1, DI
	XORL SI, SI
	MOVL $1, DX
	XORL R10, R10
	SYSCALL
	TESTL AX, AX
	JGT reap
wait:
	MOVL $128, AX // rt_sigtimedwait(&set, nil, nil, 8)
	MOVQ SP, DI
	XORL SI, SI
	XORL DX, DX
	MOVL $8, R10
	SYSCALL
	CMPL AX, $17 // SIGCHLD
	JEQ reap
	TESTL AX, AX
	JLT wait
	MOVL $231, AX // exit_group(0)
	XORL DI, DI
	SYSCALL
	INT $3

// func reaperAddress() uintptr
TEXT ·reaperAddress(SB), NOSPLIT, $0-8
	LEAQ reaper<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET
