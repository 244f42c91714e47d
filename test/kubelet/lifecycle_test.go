package kubelet

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
)

func TestContainersStartAndEndInOrder(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "order")
		s := p.ready(t)
		if s.PodIP == "" || len(s.PodIPs) != 2 {
			t.Errorf("addresses %v, want one of each family", s.PodIPs)
		}
		want := []string{"init1", "init1-done", "init2", "sidecar", "init3"}
		up := p.fileLines("order")
		if len(up) != len(want)+2 || !cmp.Equal(up[:len(want)], want) {
			t.Errorf("order of starts: %v, want %v and then the two containers", up, want)
		}
		for name, c := range containers(s) {
			if c.RestartCount != 0 || c.ImageID == "" || !strings.HasPrefix(c.ContainerID, "containerd://") && !strings.HasPrefix(c.ContainerID, "berth://") {
				t.Errorf("%s: %d restarts, image %q, ID %q", name, c.RestartCount, c.ImageID, c.ContainerID)
			}
		}
		if got := p.run(t, "reader", "cat", "/shared/from-writer"); got != "hello\n" {
			t.Errorf("the other container reads %q", got)
		}
		if err := p.delete(); err != nil {
			t.Fatal(err)
		}
		if err := p.gone(t.Context(), soon); err != nil {
			t.Fatal(err)
		}
		all := p.fileLines("order")
		if len(all) < 3 || all[len(all)-1] != "sidecar-ends" || !slices.Contains(all, "writer-ends") || !slices.Contains(all, "reader-ends") {
			t.Errorf("order of ends: %v, want the sidecar's last", all)
		}
	})
}

func TestExitsAndRestarts(t *testing.T) {
	for name, test := range map[string]struct {
		policy v1.RestartPolicy
		script string
		phase  v1.PodPhase
		reason string
		code   int32
	}{
		"succeeds":       {v1.RestartPolicyNever, "exit 0", v1.PodSucceeded, "Completed", 0},
		"fails":          {v1.RestartPolicyNever, "exit 3", v1.PodFailed, "Error", 3},
		"until it works": {v1.RestartPolicyOnFailure, "test -e /host/tried || { touch /host/tried; exit 1; }", v1.PodSucceeded, "Completed", 0},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, n *node) {
				p := newPod(t, n, "script", script(test.script), func(p *v1.Pod) { p.Spec.RestartPolicy = test.policy })
				end := containers(p.phase(t, test.phase))["main"].State.Terminated
				if end == nil || end.Reason != test.reason || end.ExitCode != test.code || end.StartedAt.IsZero() || end.FinishedAt.Before(&end.StartedAt) {
					t.Errorf("ended as %v, want %s with code %d", end, test.reason, test.code)
				}
			})
		})
	}
}

// script makes main run a script.
func script(text string) func(*v1.Pod) {
	return func(p *v1.Pod) { p.Spec.Containers[0].Command = []string{"sh", "-c", text} }
}

func TestCrashLoop(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "script", script("echo $$ $(date +%s%N) >>/host/runs; wc -l </host/runs; exit 7"))
		p.until(t, func(s *v1.PodStatus) string {
			if c := containers(s)["main"]; c == nil || c.State.Waiting == nil || c.State.Waiting.Reason != "CrashLoopBackOff" || c.RestartCount < 2 {
				return "does not back off: " + states(s)
			} else if last := c.LastTerminationState.Terminated; last == nil || last.ExitCode != 7 || last.Reason != "Error" {
				return fmt.Sprintf("last state %v", last)
			}
			return ""
		})
		n.until(t, soon, func(ctx context.Context) string {
			log, err := p.logs(ctx, "main", url.Values{"previous": {"true"}})
			if err != nil {
				return err.Error()
			}
			now, err := p.logs(ctx, "main", nil)
			if err != nil {
				return err.Error()
			}
			var a, b int
			if _, err := fmt.Sscan(log+now, &a, &b); err != nil || b != a+1 && b != a {
				return fmt.Sprintf("the previous log is %q, the newest %q", log, now)
			}
			return ""
		})
	})
}

func TestLogs(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "script", script("for i in 1 2 3 4 5; do echo line $i; done; sleep 3600"))
		p.logged(t, "main", "line 5")
		for name, test := range map[string]struct {
			query url.Values
			want  string
		}{
			"all":   {nil, "line 1\nline 2\nline 3\nline 4\nline 5\n"},
			"tail":  {url.Values{"tailLines": {"2"}}, "line 4\nline 5\n"},
			"bytes": {url.Values{"limitBytes": {"6"}}, "line 1"},
			"since": {url.Values{"sinceSeconds": {"3600"}, "tailLines": {"1"}}, "line 5\n"},
		} {
			got, err := p.logs(t.Context(), "main", test.query)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if got != test.want {
				t.Errorf("%s: %q, want %q", name, got, test.want)
			}
		}
		stamped, err := p.logs(t.Context(), "main", url.Values{"timestamps": {"true"}, "tailLines": {"1"}})
		if err != nil {
			t.Fatal(err)
		}
		stamp, _, _ := strings.Cut(stamped, " ")
		if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
			t.Errorf("time of the line: %v", err)
		}
	})
}

func TestTerminationMessages(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		policy v1.TerminationMessagePolicy
		want   string
	}{
		"file":      {"echo -n done >/dev/termination-log", v1.TerminationMessageReadFile, "done"},
		"own path":  {"echo -n there >/tmp/message", v1.TerminationMessageReadFile, "there"},
		"from log":  {"echo the reason; exit 1", v1.TerminationMessageFallbackToLogsOnError, "the reason\n"},
		"no reason": {"echo fine", v1.TerminationMessageFallbackToLogsOnError, ""},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, n *node) {
				p := newPod(t, n, "script", script(test.script), func(p *v1.Pod) {
					p.Spec.RestartPolicy = v1.RestartPolicyNever
					p.Spec.Containers[0].TerminationMessagePolicy = test.policy
					if name == "own path" {
						p.Spec.Containers[0].TerminationMessagePath = "/tmp/message"
					}
				})
				if end := p.terminated(t); end.Message != test.want {
					t.Errorf("message %q, want %q", end.Message, test.want)
				}
			})
		})
	}
}

func TestHooks(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "hooks")
		p.ready(t)
		if got := p.fileLines("exec"); !slices.Contains(got, "post-start") {
			t.Errorf("the hook after the start did not run: %v", got)
		}
		if err := p.delete(); err != nil {
			t.Fatal(err)
		}
		if err := p.gone(t.Context(), soon); err != nil {
			t.Fatal(err)
		}
		for file, want := range map[string][]string{
			"exec":  {"post-start", "pre-stop", "term"},
			"sleep": {"term-after-sleep"},
			"http":  {"term"},
		} {
			if got := p.fileLines(file); !cmp.Equal(got, want) {
				t.Errorf("%s: %v, want %v", file, got, want)
			}
		}
		if got := p.fileLines("requests"); !slices.Contains(got, "/pre-stop") {
			t.Errorf("the hook's request did not come: %v", got)
		}
	})
}

func TestFailedHookRestarts(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "script", script("sleep 3600"), func(p *v1.Pod) {
			p.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PostStart: &v1.LifecycleHandler{
				Exec: &v1.ExecAction{Command: []string{"sh", "-c", "exit 9"}},
			}}
		})
		p.until(t, func(s *v1.PodStatus) string {
			if c := containers(s)["main"]; c == nil || c.RestartCount == 0 {
				return "not restarted: " + states(s)
			}
			return ""
		})
	})
}

func TestGracefulEnd(t *testing.T) {
	const lastWords = "trap 'echo term >>/host/end; sleep 5; echo done >>/host/end; exit 0' TERM; echo up; while :; do sleep 0.1; done"
	for name, test := range map[string]struct {
		script string
		grace  int64
		want   []string
		atMost time.Duration
	}{
		"has its time":  {lastWords, 30, []string{"term", "done"}, 25 * time.Second},
		"is cut short":  {"trap 'echo term >>/host/end' TERM; echo up; while :; do sleep 0.1; done", 2, []string{"term"}, soon},
		"ends at once":  {"trap 'echo term >>/host/end; exit 0' TERM; echo up; while :; do sleep 0.1; done", 60, []string{"term"}, 30 * time.Second},
		"stop signal":   {"trap 'echo usr1 >>/host/end; exit 0' USR1; echo up; while :; do sleep 0.1; done", 60, []string{"usr1"}, 30 * time.Second},
		"no time to it": {lastWords, 2, []string{"term"}, soon},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, n *node) {
				p := newPod(t, n, "script", script(test.script), func(p *v1.Pod) {
					p.Spec.TerminationGracePeriodSeconds = &test.grace
					if name == "stop signal" {
						p.Spec.OS = &v1.PodOS{Name: v1.Linux}
						p.Spec.Containers[0].Lifecycle = &v1.Lifecycle{StopSignal: new(v1.SIGUSR1)}
					}
				})
				p.ready(t)
				p.logged(t, "main", "up")
				if err := p.delete(); err != nil {
					t.Fatal(err)
				}
				if err := p.gone(t.Context(), test.atMost); err != nil {
					t.Fatal(err)
				}
				if got := p.fileLines("end"); !cmp.Equal(got, test.want) {
					t.Errorf("last words %v, want %v", got, test.want)
				}
			})
		})
	}
}

func TestActiveDeadline(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "script", script("sleep 3600"), func(p *v1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(3)) })
		if s := p.phase(t, v1.PodFailed); s.Reason != "DeadlineExceeded" {
			t.Errorf("reason %q, want DeadlineExceeded: %s", s.Reason, s.Message)
		}
	})
}
