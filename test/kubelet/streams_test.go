package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"

	"berth/internal/testkit"
)

// protocols run a test with both kinds of streams.
func protocols(t *testing.T, p *pod, f func(t *testing.T, p *pod)) {
	t.Helper()
	for name, webSocket := range map[string]bool{"SPDY": false, "WebSocket": true} {
		t.Run(name, func(t *testing.T) {
			other := *p
			other.webSocket = webSocket
			f(t, &other)
		})
	}
}

func TestExec(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "script")
		p.ready(t)
		protocols(t, p, func(t *testing.T, p *pod) {
			var stdout, stderr testkit.Buffer
			big := strings.Repeat("0123456789abcdef", 1<<16)
			err := p.exec(t.Context(), "main", []string{"sh", "-c", "cat; echo bad >&2; exit 5"},
				remotecommand.StreamOptions{Stdin: strings.NewReader(big), Stdout: &stdout, Stderr: &stderr})
			exit := utilexec.CodeExitError{}
			if !errors.As(err, &exit) || exit.Code != 5 {
				t.Errorf("error %v, want exit code 5", err)
			}
			if stdout.String() != big || stderr.String() != "bad\n" {
				t.Errorf("%d bytes come back of %d, stderr %q", len(stdout.String()), len(big), stderr.String())
			}
		})
		protocols(t, p, terminal)
	})
}

// sizes tells one size of a terminal and no more.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

func terminal(t *testing.T, p *pod) {
	size := make(sizes, 1)
	size <- remotecommand.TerminalSize{Width: 123, Height: 45}
	defer close(size)
	in, typed := io.Pipe()
	var out testkit.Buffer
	ended := make(chan error, 1)
	go func() {
		ended <- p.exec(t.Context(), "main", []string{"sh"}, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: size})
	}()
	p.n.until(t, soon, func(context.Context) string {
		if _, err := io.WriteString(typed, "stty size\n"); err != nil {
			return err.Error()
		}
		if !strings.Contains(out.String(), "45 123") {
			return fmt.Sprintf("the terminal has not the size that was set: %.300q", out.String())
		}
		return ""
	})
	if _, err := io.WriteString(typed, "exit 0\n"); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the terminal ended with %v", err)
	}
	if err := typed.Close(); err != nil {
		t.Error(err)
	}
}

func TestAttach(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		for name, webSocket := range map[string]bool{"SPDY": false, "WebSocket": true} {
			t.Run(name, func(t *testing.T) {
				p := newPod(t, n, "script", script("while read -r line; do echo got $line; done; exit 0"),
					func(p *v1.Pod) { p.Spec.Containers[0].Stdin = true })
				p.webSocket = webSocket
				attachTo(t, p)
			})
		}
	})
}

// attachTo talks with a container that answers each line.
func attachTo(t *testing.T, p *pod) {
	t.Helper()
	p.ready(t)
	in, typed := io.Pipe()
	var out testkit.Buffer
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		ended <- p.attach(ctx, "main", remotecommand.StreamOptions{Stdin: in, Stdout: &out})
	}()
	t.Cleanup(func() {
		cancel()
		_ = typed.Close() // ends the copy of what is typed
		<-ended
	})
	p.n.until(t, soon, func(context.Context) string {
		if _, err := io.WriteString(typed, "hello\n"); err != nil {
			return err.Error()
		}
		if !strings.Contains(out.String(), "got hello") {
			return fmt.Sprintf("no answer: %.300q", out.String())
		}
		return ""
	})
	p.logged(t, "main", "got hello")
}

// A container's own terminal can be attached to, left, and attached to again.
func TestAttachTerminal(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		for name, webSocket := range map[string]bool{"SPDY": false, "WebSocket": true} {
			t.Run(name, func(t *testing.T) {
				p := newPod(t, n, "script", func(p *v1.Pod) {
					c := &p.Spec.Containers[0]
					c.Command, c.Stdin, c.TTY = []string{"sh"}, true, true
				})
				p.webSocket = webSocket
				p.ready(t)
				for _, word := range []string{"first", "second"} {
					p.typeInto(t, word)
				}
				p.logged(t, "main", "said second")
			})
		}
	})
}

// typeInto attaches to the pod's shell, sets the size of its terminal, has it
// say the word and leaves.
func (p *pod) typeInto(t *testing.T, word string) {
	t.Helper()
	size := make(sizes, 1)
	size <- remotecommand.TerminalSize{Width: uint16(100 + len(word)), Height: 30}
	defer close(size)
	in, typed := io.Pipe()
	var out testkit.Buffer
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		ended <- p.attach(ctx, "main", remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: size})
	}()
	defer func() {
		cancel()
		_ = typed.Close() // ends the copy of what is typed
		<-ended
	}()
	want := fmt.Sprintf("said %s 30 %d", word, 100+len(word))
	p.n.until(t, soon, func(context.Context) string {
		if _, err := io.WriteString(typed, "echo said "+word+" $(stty size)\n"); err != nil {
			return err.Error()
		}
		if !strings.Contains(out.String(), want) {
			return fmt.Sprintf("no %q in %.500q", want, out.String())
		}
		return ""
	})
}

func TestPortForward(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "probed")
		p.ready(t)
		local := p.forward(t, httpPort)
		client := &http.Client{Timeout: 30 * time.Second}
		t.Cleanup(client.CloseIdleConnections)
		for range 3 { // each a connection of its own, and one after the other
			resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/ready", local))
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(resp.Body)
			if err := errors.Join(err, resp.Body.Close()); err != nil {
				t.Fatal(err)
			}
			if string(text) != "well\n" {
				t.Errorf("through the forwarded port comes %q", text)
			}
			client.CloseIdleConnections()
		}
	})
}

func TestRunAPI(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "script")
		p.ready(t)
		query := url.Values{"cmd": {"echo hello from run"}}
		resp, err := n.http.Post(n.url("/run/"+p.path("main")+"?"+query.Encode()), "", nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if string(text) != "hello from run\n" {
			t.Errorf("it answers %s: %q", resp.Status, text)
		}
	})
}

// Checkpoints want CRIU, which this kernel and berth do not have: the kubelet
// must hear so and nothing may happen to the container.
func TestCheckpoint(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "script")
		before := containers(p.ready(t))["main"]
		resp, err := n.http.Post(n.url("/checkpoint/"+p.path("main")), "", nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == http.StatusOK || !strings.Contains(string(text), "berth makes no checkpoints, which take CRIU") {
			t.Errorf("%s: %s", resp.Status, text)
		}
		if after := containers(p.ready(t))["main"]; after.RestartCount != 0 || after.ContainerID != before.ContainerID {
			t.Errorf("a refused checkpoint (%s) touched the container", text)
		}
	})
}
