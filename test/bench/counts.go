package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"berth/internal/testkit"
)

// counted counts system calls of one pod up and of one pod down. It begins when
// servers have deleted what the pods before left: containerd and berth collect
// that later, and it is no part of the next pod.
func (b *bench) counted(ctx context.Context) error {
	return b.alternate(ctx, b.plan.counts, func(s *server) error {
		pause(ctx, b.plan.traceRest)
		p, err := s.newPod(b.image, idleArgs)
		if err != nil {
			return err
		}
		for _, phase := range []struct {
			sync, exec string
			do         func(context.Context) (took, error)
		}{{keySyncUp, keyExecUp, p.up}, {keySyncDown, keyExecDown, p.down}} {
			c, err := b.trace(ctx, s, phase.do)
			if err != nil {
				if ctx.Err() == nil {
					b.results.fail(s.name, phase.sync, err)
					b.results.fail(s.name, phase.exec, err)
				}
				return p.discard(context.WithoutCancel(ctx))
			}
			b.results.add(s.name, phase.sync, float64(c.syncs))
			b.results.add(s.name, phase.exec, float64(c.execs))
		}
		return nil
	})
}

// trace attaches strace to every process of the server that is no workload, and
// to what they start, while do runs and for a moment after.
func (b *bench) trace(ctx context.Context, s *server, do func(context.Context) (took, error)) (c counts, err error) {
	all, err := s.processes()
	if err != nil {
		return counts{}, err
	}
	file := filepath.Join(s.dir, "strace.log")
	args := []string{"-f", "-o", file, "-e", "trace=fsync,fdatasync,sync,syncfs,execve,execveat", "-e", "signal=none"}
	attached := 0
	for _, p := range all {
		if !p.workload() {
			args = append(args, "-p", strconv.Itoa(p.pid))
			attached++
		}
	}
	cmd := exec.Command("strace", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return counts{}, err
	}
	if err := cmd.Start(); err != nil {
		return counts{}, fmt.Errorf("strace (\"make deps\" installs it): %w", err)
	}
	said := watch(stderr)
	err = said.attached(ctx, attached)
	if err == nil {
		_, err = do(ctx)
		pause(ctx, b.plan.traceSettle)
	}
	// SIGINT has it detach from everything.
	err = errors.Join(err, cmd.Process.Signal(syscall.SIGINT))
	<-said.done
	_ = cmd.Wait() // that it was interrupted
	if err != nil {
		return counts{}, err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return counts{}, err
	}
	return countCalls(bytes.NewReader(text))
}

// A watched is what strace says of itself.
type watched struct {
	lines chan string   // "attached" lines
	done  chan struct{} // closed at its end
}

func watch(r io.Reader) watched {
	w := watched{make(chan string, 1024), make(chan struct{})}
	go func() {
		defer close(w.done)
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			if strings.Contains(lines.Text(), " attached") {
				select {
				case w.lines <- lines.Text():
				default:
				}
			}
		}
	}()
	return w
}

// attached waits for so many processes.
func (w watched) attached(ctx context.Context, n int) error {
	have := 0
	return testkit.Poll(ctx, startTimeout, func(context.Context) string {
		for {
			select {
			case <-w.lines:
				have++
			case <-w.done:
				return "strace ended"
			default:
				if have >= n {
					return ""
				}
				return fmt.Sprintf("strace attached to %d of %d processes", have, n)
			}
		}
	})
}

// counts are of calls that succeeded.
type counts struct {
	syncs, execs int
}

var (
	traceLine  = regexp.MustCompile(`^(\d+) +(?:<\.\.\. )?(\w+)(\(| resumed>)(.*)$`)
	superseded = regexp.MustCompile(`^(\d+) +\+\+\+ superseded by execve in pid (\d+)`)
	execPath   = regexp.MustCompile(`^(?:[^"]*)"([^"]*)"`)
)

// countCalls reads the output of strace -f -o. An execution of the workload is
// not counted; one of the peer's pause is. Where a call and its end are on two
// lines, the path is on the first.
func countCalls(r io.Reader) (counts, error) {
	var c counts
	pending := map[string]string{} // PID → path
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if m := superseded.FindStringSubmatch(line); m != nil {
			pending[m[1]] = pending[m[2]]
			continue
		}
		m := traceLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		pid, name, rest := m[1], m[2], m[4]
		if m[3] == "(" {
			pending[pid] = ""
			if path := execPath.FindStringSubmatch(rest); path != nil {
				pending[pid] = path[1]
			}
		}
		if !strings.HasSuffix(rest, " = 0") {
			continue // it failed, or its end comes later
		}
		switch {
		case !strings.HasPrefix(name, "exec"):
			c.syncs++
		case pending[pid] != workProgram:
			c.execs++
		}
	}
	return c, lines.Err()
}
