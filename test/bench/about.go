package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// about says what was measured on what, one thing a line.
func (b *bench) about(took time.Duration) ([]string, error) {
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	mode := "full"
	if b.quick {
		mode = "quick"
	}
	if b.rounds != 1 {
		mode += fmt.Sprintf(", rounds × %g", b.rounds)
	}
	p := b.plan
	lines := []string{
		"date: " + time.Now().UTC().Format("2006-01-02 15:04 MST"),
		fmt.Sprintf("run: %s, %.0f s", mode, took.Seconds()),
		fmt.Sprintf("machine: %d × %s, kernel %s", runtime.NumCPU(), processor(), unix.ByteSliceToString(uname.Release[:])),
		fmt.Sprintf("rounds: %d lifecycles, %d × %d by %d workers, %d of each list, %d restarts, %d + %d × %d executions, "+
			"%d logs of %d MiB, %d pulls, idle for %s", p.lifecycles, p.batches, p.batch, workers, p.lists, p.restarts,
			p.execs, p.execBatches, p.execBatch, p.logs, p.logMiB, p.pulls, p.idle),
	}
	for _, v := range []struct {
		name    string
		program string
		args    []string
	}{
		{"berth", "berth", []string{"version", "--client"}}, {"containerd", "bench/containerd", []string{"--version"}},
		{"runc", "libexec/runc", []string{"--version"}},
	} {
		lines = append(lines, v.name+": "+versionOf(filepath.Join(b.bin, v.program), v.args))
	}
	return append(lines, "CNI plugins: 1.9.1; containerd's shim: 2.4.2 (tools/go.mod)"), nil
}

// versionOf is the first line that a program says about itself.
func versionOf(program string, args []string) string {
	out, err := exec.Command(program, args...).Output()
	if err != nil {
		return "unknown: " + err.Error()
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return strings.TrimPrefix(line, "client: ")
}

func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
