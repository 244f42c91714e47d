package serve

import (
	"bytes"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// limits are what this process's own rights allow a container. The daemon's
// spec is made to the daemon's; a supervisor that an older or otherwise started
// daemon left may have others.
type limits struct {
	log         *slog.Logger
	resource    bool // CAP_SYS_RESOURCE: no limits
	oomScoreAdj int
	once        sync.Once
}

const capSysResource = 24

func readLimits(log *slog.Logger) *limits {
	l := &limits{log: log}
	if status, err := os.ReadFile("/proc/self/status"); err == nil {
		for line := range strings.Lines(string(status)) {
			if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
				bits, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
				l.resource = err == nil && bits&(1<<capSysResource) != 0
			}
		}
	}
	if adj, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
		l.oomScoreAdj, _ = strconv.Atoi(string(bytes.TrimSpace(adj))) // 0 is the kernel's default
	}
	return l
}

// clamp makes p ask for no more than is allowed.
func (l *limits) clamp(p *specs.Process) {
	if l.resource || p == nil {
		return
	}
	if p.OOMScoreAdj != nil && *p.OOMScoreAdj < l.oomScoreAdj {
		own := l.oomScoreAdj
		p.OOMScoreAdj = &own
		l.say()
	}
	for i, want := range p.Rlimits {
		resource, ok := rlimits[want.Type]
		if !ok {
			continue // libcontainer refuses it
		}
		var own unix.Rlimit
		if err := unix.Getrlimit(resource, &own); err != nil || want.Hard <= own.Max {
			continue
		}
		p.Rlimits[i].Hard, p.Rlimits[i].Soft = own.Max, min(want.Soft, own.Max)
		l.say()
	}
}

func (l *limits) say() {
	l.once.Do(func() {
		l.log.Warn("without CAP_SYS_RESOURCE oom_score_adj is not lowered and limits are not raised: containers get what this process has")
	})
}

var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// rlimitsOf are p's for libcontainer.
func rlimitsOf(p *specs.Process) []configs.Rlimit {
	var list []configs.Rlimit
	for _, r := range p.Rlimits {
		if resource, ok := rlimits[r.Type]; ok {
			list = append(list, configs.Rlimit{Type: resource, Hard: r.Hard, Soft: r.Soft})
		}
	}
	return list
}
