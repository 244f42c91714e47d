// Package doctor finds out whether a machine can run berth, and what to do
// where it cannot.
//
// Each check tries the real thing where that leaves no trace (an overlay in a
// mount namespace of its own, links in a network namespace of its own) and
// reads the kernel's own words elsewhere. Checks change nothing, need no
// daemon, and do not depend on one another; they run one after the other, in
// one goroutine.
package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"berth/internal/config"
)

// A Level is how bad a finding is.
type Level string

// Fail keeps berth, or pods that ask for nothing special, from working. Warn
// takes away something that some pods want.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// A Finding is what one check found.
type Finding struct {
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Detail string `json:"detail"`
	// Advice is what to do; empty for OK.
	Advice string `json:"advice,omitempty"`
}

// Options say what to check.
type Options struct {
	// Config is the daemon's configuration; required.
	Config *config.Config
	// Executable is berth's own path; installed programs are found by it.
	Executable string
	// Root is where /proc, /sys, /run, /etc, /var/lib/kubelet and programs are
	// looked up, for tests; empty is "/".
	Root string
	// Probe asks a running daemon for its version and its conditions; nil
	// leaves that check out.
	Probe func(ctx context.Context) (version string, problems []string, err error)
}

// Run makes all checks.
func Run(ctx context.Context, opts Options) []Finding {
	if opts.Root == "" {
		opts.Root = "/"
	}
	e := &exam{Options: opts, ctx: ctx}
	for _, check := range []func(){
		e.wholeProc,
		e.privileges, e.kernel, e.namespaces, e.userNamespaces, e.seccomp, e.securityModules,
		e.overlay, e.links, e.firewall, e.forwarding, e.bridgeFilter,
		e.cgroups, e.pressure, e.limits,
		e.cni, e.programs, e.disk, e.socket, e.daemon, e.others, e.kubelet, e.crictl,
	} {
		if ctx.Err() != nil {
			break
		}
		check()
	}
	return e.findings
}

// Worst is the worst level of all.
func Worst(findings []Finding) Level {
	worst := OK
	for _, f := range findings {
		if f.Level == Fail || f.Level == Warn && worst == OK {
			worst = f.Level
		}
	}
	return worst
}

// An exam collects findings.
type exam struct {
	Options
	ctx      context.Context
	findings []Finding
	// version and driver of the cgroups, once they are known.
	version int
	driver  string
}

func (e *exam) ok(check, format string, args ...any) {
	e.findings = append(e.findings, Finding{Check: check, Level: OK, Detail: fmt.Sprintf(format, args...)})
}

func (e *exam) warn(check, advice, format string, args ...any) {
	e.findings = append(e.findings, Finding{check, Warn, fmt.Sprintf(format, args...), advice})
}

func (e *exam) fail(check, advice, format string, args ...any) {
	e.findings = append(e.findings, Finding{check, Fail, fmt.Sprintf(format, args...), advice})
}

// read is the text of one of the kernel's files, "" where there is none.
func (e *exam) read(path string) string {
	text, err := os.ReadFile(filepath.Join(e.Root, path))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func (e *exam) exists(path string) bool {
	_, err := os.Lstat(filepath.Join(e.Root, path))
	return err == nil
}

// nearest is the directory itself, or the innermost parent that exists.
func nearest(dir string) string {
	for {
		if st, err := os.Stat(dir); err == nil && st.IsDir() {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return dir
		}
		dir = parent
	}
}
