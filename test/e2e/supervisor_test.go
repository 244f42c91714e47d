package e2e

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// supervisors are the names of a daemon's supervisors that run, by PID.
func supervisors(t *testing.T, d *testkit.Daemon) map[int]string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	names := map[int]string{}
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue // ended meanwhile
		}
		args := strings.Split(string(cmdline), "\x00")
		if len(args) > 5 && args[1] == "serve" && args[3] == d.State {
			pid, err := strconv.Atoi(filepath.Base(dir))
			if err != nil {
				t.Fatal(err)
			}
			names[pid] = args[5]
		}
	}
	return names
}

// With supervisor = "pod" each pod has one of its own, which ends with it.
func TestSupervisorOfAPod(t *testing.T) {
	if testing.Short() {
		t.Skip("needs real daemons; not with -short")
	}
	d := testkit.StartDaemon(t, testkit.DaemonOptions{Config: map[string]any{
		"runtime.default_handler":           "apart",
		"runtime.handlers.apart.type":       "io.containerd.berth.v1",
		"runtime.handlers.apart.supervisor": "pod",
	}})
	c, err := d.Client()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pull(t.Context(), busybox); err != nil {
		t.Fatal(err)
	}
	if err := c.WarmUp(t.Context(), busybox); err != nil {
		t.Fatal(err)
	}
	of := func(want int) {
		t.Helper()
		testkit.Until(t, 30*time.Second, func(context.Context) string {
			n := 0
			for _, name := range supervisors(t, d) {
				if strings.HasPrefix(name, "p") {
					n++
				}
			}
			if n != want {
				return strconv.Itoa(n) + " pods have a supervisor of their own, want " + strconv.Itoa(want)
			}
			return ""
		})
	}
	of(0) // the first pod's has ended
	one, two := c.Pod(t), c.Pod(t)
	running := one.Container(t, busybox, []string{"sh", "-c", "echo up; sleep 1000"})
	one.Container(t, busybox, []string{"sleep", "1000"})
	two.Container(t, busybox, []string{"sleep", "1000"})
	of(2)
	running.Logged(t, "up")
	if err := d.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := running.Status(t).State; got != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("state %v after a restart", got)
	}
	running.Exec(t, "true")
	of(2)
	for _, p := range []*testkit.Pod{one, two} {
		if err := p.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	of(0)
}

// A terminal is a client attached to a container's.
type terminal struct {
	out    testkit.Buffer
	in     *io.PipeWriter
	resize sizes
	done   chan error
}

func attachTerminal(t *testing.T, c *testkit.Client, ctr *testkit.Container) *terminal {
	t.Helper()
	resp, err := c.Attach(t.Context(), &cri.AttachRequest{ContainerId: ctr.ID, Stdin: true, Stdout: true, Tty: true})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(resp.Url)
	if err != nil {
		t.Fatal(err)
	}
	e, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
	if err != nil {
		t.Fatal(err)
	}
	in, write := io.Pipe()
	a := &terminal{in: write, resize: make(sizes, 1), done: make(chan error, 1)}
	go func() {
		a.done <- e.StreamWithContext(streamContext(t), remotecommand.StreamOptions{Stdin: in, Stdout: &a.out, Tty: true, TerminalSizeQueue: a.resize})
	}()
	return a
}

// leave ends the client's side.
func (a *terminal) leave(t *testing.T) {
	t.Helper()
	close(a.resize)
	if err := a.in.Close(); err != nil {
		t.Error(err)
	}
	<-a.done // its connection may have been cut
}

// killSupervisor kills the one that runs, and waits for the next one.
func killSupervisor(t *testing.T, d *testkit.Daemon) {
	t.Helper()
	before := supervisors(t, d)
	for pid := range before {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Until(t, 30*time.Second, func(context.Context) string {
		for pid := range supervisors(t, d) {
			if before[pid] == "" {
				return ""
			}
		}
		return "no supervisor after the one that was killed"
	})
}

// The terminal of a container outlives the supervisor that made it: the next one
// gets it from the daemon, and input, output and sizes go through it as before.
func TestTerminalOutlivesTheSupervisor(t *testing.T) {
	if testing.Short() {
		t.Skip("needs real daemons; not with -short")
	}
	d := testkit.StartDaemon(t, testkit.DaemonOptions{})
	c := d.Watched(t, busybox)
	ctr := c.Pod(t).Container(t, busybox, []string{"sh", "-c", `while read line; do echo "got $line $(stty size)"; [ "$line" != end ] || exit 6; done`},
		func(c *cri.ContainerConfig) { c.Stdin, c.Tty = true, true })
	first := attachTerminal(t, c, ctr)
	feed(t, first.in, first.done, "one\n")
	holds(t, &first.out, "got one ")
	for _, size := range []remotecommand.TerminalSize{{Width: 91, Height: 37}, {Width: 120, Height: 50}} {
		killSupervisor(t, d)
		testkit.Until(t, 30*time.Second, func(ctx context.Context) string {
			if res, err := ctr.ExecSync(ctx, "true"); err != nil || res.ExitCode != 0 {
				return "exec: " + res.String()
			}
			return ""
		})
		again := attachTerminal(t, c, ctr)
		again.resize <- size
		want := strconv.Itoa(int(size.Height)) + " " + strconv.Itoa(int(size.Width))
		testkit.Until(t, 30*time.Second, func(context.Context) string { // a size comes when it comes
			feed(t, again.in, again.done, "two\n")
			if got := again.out.String(); !strings.Contains(got, "got two "+want) {
				return "size " + want + " is not in " + got
			}
			return ""
		})
		again.leave(t)
	}
	first.leave(t)
	last := attachTerminal(t, c, ctr)
	feed(t, last.in, last.done, "end\n")
	if s := ctr.Exited(t); s.ExitCode != 6 && s.Reason != "Unknown" {
		t.Errorf("exit code %d, %s: %s", s.ExitCode, s.Reason, s.Message)
	}
	last.leave(t)
	ctr.Logged(t, "got end 50 120")
}
