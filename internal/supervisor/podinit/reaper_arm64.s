#include "textflag.h"

// The whole program that stays as PID 1; see program.go. It is copied from
// here, so it holds no address. Before it starts SIGCHLD, SIGTERM and SIGINT are
// blocked already, but in a sandbox container.
TEXT reaper<>(SB), NOSPLIT|NOFRAME, $0
	SUB $16, RSP
	MOVD $0x4002, R19 // the set of SIGINT, SIGTERM, SIGCHLD
	MOVD $0x10000, R20
	ORR R20, R19, R19
	MOVD R19, (RSP)
	MOVD $135, R8 // rt_sigprocmask(SIG_BLOCK, &set, nil, 8)
	MOVD $0, R0
	MOVD RSP, R1
	MOVD $0, R2
	MOVD $8, R3
	SVC
reap:
	MOVD $260, R8 // wait4(-1, nil, WNOHANG, nil)
	MOVD $-1, R0
	MOVD $0, R1
	MOVD $1, R2
	MOVD $0, R3
	SVC
	CMP $0, R0
	BGT reap
wait:
	MOVD $137, R8 // rt_sigtimedwait(&set, nil, nil, 8)
	MOVD RSP, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $8, R3
	SVC
	CMP $17, R0 // SIGCHLD
	BEQ reap
	CMP $0, R0
	BLT wait
	MOVD $94, R8 // exit_group(0)
	MOVD $0, R0
	SVC
	BRK

// func reaperAddress() uintptr
TEXT ·reaperAddress(SB), NOSPLIT, $0-8
	MOVD $reaper<>(SB), R0
	MOVD R0, ret+0(FP)
	RET
