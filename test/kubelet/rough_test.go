package kubelet

import (
	"bufio"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// A pod of twenty containers that all end at once is restarted with all of
// them, and ends when it is deleted.
func TestCrashLoopOfMany(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		const many = 20
		p := newPod(t, n, "scratch", n.meant, func(p *v1.Pod) {
			first := p.Spec.Containers[0]
			p.Spec.Containers = nil
			for i := range many {
				c := *first.DeepCopy()
				c.Name, c.Command = fmt.Sprintf("c%d", i), []string{"sh", "-c", fmt.Sprintf("echo run; exit %d", i)}
				p.Spec.Containers = append(p.Spec.Containers, c)
			}
		})
		p.until(t, func(s *v1.PodStatus) string {
			for i := range many {
				c := containers(s)[fmt.Sprintf("c%d", i)]
				if c == nil || c.RestartCount < 2 {
					return "not all were restarted twice: " + states(s)
				}
				if last := c.LastTerminationState.Terminated; last == nil || last.ExitCode != int32(i) {
					return fmt.Sprintf("container %d ended as %v", i, last)
				}
			}
			return ""
		})
		p.ends(t)
	})
}

// ends deletes the pod and wants it to be gone.
func (p *pod) ends(t *testing.T) {
	t.Helper()
	if err := p.delete(); err != nil {
		t.Fatal(err)
	}
	if err := p.gone(t.Context(), soon); err != nil {
		t.Error(err)
	}
}

// A container with a thousand processes that ignore every signal that can be
// ignored is ended with all of them.
func TestManyProcesses(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "script", script("trap '' TERM INT HUP QUIT USR1 USR2; i=0; while [ $i -lt 1000 ]; do sleep 7654 & i=$((i+1)); done; echo up; while :; do sleep 1; done"))
		p.logged(t, "main", "up")
		p.ends(t)
	})
}

// One that makes more processes than a pod may have meets the limit; the others
// of its node and its own pod do not.
func TestTooManyProcesses(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "script", script("(while :; do sleep 7655 & done) 2>/host/said; echo ended; sleep 3600"))
		p.logged(t, "main", "ended")
		said, err := os.ReadFile(filepath.Join(p.dir, "said"))
		if err != nil || !strings.Contains(string(said), "can't fork") {
			t.Errorf("the container is told %q %v", said, err)
		}
		p.ends(t)
	})
}

// The main process of a container is its end, also where what it left behind
// is in the PID namespace of the pod and holds its output.
func TestLeftBehind(t *testing.T) {
	for name, share := range map[string]bool{"shared": true, "own": false} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, n *node) {
				p := newPod(t, n, "pair", func(p *v1.Pod) {
					p.Spec.ShareProcessNamespace, p.Spec.RestartPolicy = &share, v1.RestartPolicyNever
					p.Spec.Containers[0].Name = "main"
					p.Spec.Containers[0].Command = []string{"sh", "-c", "trap '' TERM HUP; setsid sleep 4321 & echo left; exit 4"}
				})
				if end := p.terminated(t); end.ExitCode != 4 {
					t.Errorf("ended as %v", end)
				}
				if got := p.run(t, "second", "ps"); strings.Contains(got, "sleep 4321") {
					t.Errorf("what the container left runs on: %s", got)
				}
				p.logged(t, "main", "left")
			})
		})
	}
}

// A hundred MiB of log are written while the kubelet rotates it: the files that
// are kept are whole, and no more than there may be.
func TestLogRotation(t *testing.T) {
	const bursts, lines = 20, 50_000 // 5 MiB each
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "script", script(fmt.Sprintf(
			`b=0; while [ $b -lt %d ]; do awk -v b=$b 'BEGIN {for (i = 1; i <= %d; i++) printf "line %%0100d\n", b*%d+i}'; b=$((b+1)); sleep 1.5; done; echo end; sleep 3600`,
			bursts, lines, lines)))
		p.until(t, func(s *v1.PodStatus) string {
			log, err := p.logs(t.Context(), "main", map[string][]string{"tailLines": {"1"}})
			if err != nil {
				return err.Error()
			}
			if log != "end\n" {
				return fmt.Sprintf("the last line is %q", log)
			}
			return ""
		})
		dir := p.logDir("main")
		n.until(t, soon, func(context.Context) string { return rotated(dir) })
		numbers := n.logNumbers(t, dir)
		for i := range numbers[1:] {
			if numbers[i+1] != numbers[i]+1 {
				t.Fatalf("after line %d comes line %d", numbers[i], numbers[i+1])
			}
		}
		if last := numbers[len(numbers)-1]; last != bursts*lines || len(numbers) < lines {
			t.Errorf("%d lines are kept, the last is %d", len(numbers), last)
		}
	})
}

// rotated tells what is left for the kubelet to do with the files of a log: the
// newest is short, the one before as it was, all others are packed.
func rotated(dir string) string {
	old, err := filepath.Glob(dir + "/0.log.*")
	if err != nil {
		return err.Error()
	}
	slices.Sort(old)
	info, err := os.Stat(dir + "/0.log")
	if err != nil {
		return err.Error()
	}
	packed := func(f string) bool { return strings.HasSuffix(f, ".gz") }
	last := len(old) - 1
	if info.Size() > 4<<20 || len(old) != maxLogFiles-1 || packed(old[last]) || slices.ContainsFunc(old[:last], func(f string) bool { return !packed(f) }) {
		return fmt.Sprintf("a log of %d bytes, and before it %q", info.Size(), old)
	}
	return ""
}

// logDir is where a container's log is.
func (p *pod) logDir(container string) string {
	return fmt.Sprintf("%s/logs/default_%s_%s/%s", p.n.dir, p.name, p.manifest.UID, container)
}

// numbered finds the number of a line of TestLogRotation.
var numbered = regexp.MustCompile(` stdout F line 0*(\d+)$`)

// logNumbers reads the files of a log, oldest first.
func (n *node) logNumbers(t *testing.T, dir string) []int {
	t.Helper()
	files, err := filepath.Glob(dir + "/0.log.*")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files) // by the time that their names end with
	var numbers []int
	for _, file := range append(files, dir+"/0.log") {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		var r io.Reader = f
		if strings.HasSuffix(file, ".gz") {
			if r, err = gzip.NewReader(f); err != nil {
				t.Fatal(err)
			}
		}
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			if m := numbered.FindStringSubmatch(lines.Text()); m != nil {
				number, err := strconv.Atoi(m[1])
				if err != nil {
					t.Fatal(err)
				}
				numbers = append(numbers, number)
			} else if !strings.HasSuffix(lines.Text(), "stdout F end") {
				t.Fatalf("%s has the line %q", file, lines.Text())
			}
		}
		if err := lines.Err(); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(numbers) == 0 {
		t.Fatalf("no line in %s", dir)
	}
	return numbers
}

// What a pod whose sandbox cannot be made is refused for is in the kubelet's
// log, and nothing of it stays.
func TestBrokenSandboxes(t *testing.T) {
	for name, test := range map[string]struct {
		sysctl v1.Sysctl
		told   string
	}{
		"no such sysctl": {v1.Sysctl{Name: "net.core.no_such", Value: "1"}, `net.core.no_such`},
		"no such value":  {v1.Sysctl{Name: "net.core.somaxconn", Value: "many"}, `net.core.somaxconn.*many`},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, n *node) {
				p := newPod(t, n, "script", n.meant, func(p *v1.Pod) {
					p.Spec.SecurityContext = &v1.PodSecurityContext{Sysctls: []v1.Sysctl{test.sysctl}}
				})
				told := regexp.MustCompile(`CreatePodSandbox for pod failed" err=.*` + test.told + `.*` + p.name)
				n.until(t, soon, func(context.Context) string {
					text, err := os.ReadFile(n.logFile)
					if err != nil {
						return err.Error()
					}
					if line := told.Find(text); line != nil {
						t.Logf("TOLD %s", line)
						return ""
					}
					return "the kubelet's log does not say why"
				})
				p.ends(t)
			})
		})
	}
}
