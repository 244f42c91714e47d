package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// holds waits until the buffer has the text.
func holds(t *testing.T, b *testkit.Buffer, text string) {
	t.Helper()
	testkit.Until(t, 15*time.Second, func(context.Context) string {
		if got := b.String(); !strings.Contains(got, text) {
			return fmt.Sprintf("no %q in %q", text, got)
		}
		return ""
	})
}

// protocols run a test with both kinds of client.
func protocols(t *testing.T, f func(t *testing.T, dial func(t *testing.T, address string) remotecommand.Executor)) {
	t.Helper()
	t.Run("SPDY", func(t *testing.T) {
		f(t, func(t *testing.T, address string) remotecommand.Executor {
			t.Helper()
			u, err := url.Parse(address)
			if err != nil {
				t.Fatal(err)
			}
			e, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
			if err != nil {
				t.Fatal(err)
			}
			return e
		})
	})
	t.Run("WebSocket", func(t *testing.T) {
		f(t, func(t *testing.T, address string) remotecommand.Executor {
			t.Helper()
			e, err := remotecommand.NewWebSocketExecutor(&rest.Config{}, http.MethodGet, address)
			if err != nil {
				t.Fatal(err)
			}
			return e
		})
	})
}

func streamContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestExec(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ctr := sleeper(t, c.Pod(t))
		protocols(t, func(t *testing.T, dial func(*testing.T, string) remotecommand.Executor) {
			var stdout, stderr testkit.Buffer
			resp, err := c.Exec(t.Context(), &cri.ExecRequest{ContainerId: ctr.ID, Stdin: true, Stdout: true, Stderr: true,
				Cmd: []string{"sh", "-c", "cat; echo on stderr >&2; exit 5"}})
			if err != nil {
				t.Fatal(err)
			}
			err = dial(t, resp.Url).StreamWithContext(streamContext(t), remotecommand.StreamOptions{
				Stdin: strings.NewReader(strings.Repeat("input\n", 10_000)), Stdout: &stdout, Stderr: &stderr})
			exit := new(utilexec.CodeExitError)
			if !errors.As(err, exit) || exit.Code != 5 {
				t.Errorf("err = %v, want exit code 5", err)
			}
			if got := stdout.String(); got != strings.Repeat("input\n", 10_000) {
				t.Errorf("stdout has %d bytes", len(got))
			}
			if got := stderr.String(); got != "on stderr\n" {
				t.Errorf("stderr %q", got)
			}
			// The token is good once.
			if err := dial(t, resp.Url).StreamWithContext(streamContext(t), remotecommand.StreamOptions{Stdout: &stdout}); err == nil {
				t.Error("the URL works twice")
			}
		})
	})
}

func TestExecSucceeds(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ctr := sleeper(t, c.Pod(t))
		protocols(t, func(t *testing.T, dial func(*testing.T, string) remotecommand.Executor) {
			for range 5 {
				var stdout testkit.Buffer
				resp, err := c.Exec(t.Context(), &cri.ExecRequest{ContainerId: ctr.ID, Stdout: true, Stderr: true, Cmd: []string{"seq", "1000"}})
				if err != nil {
					t.Fatal(err)
				}
				if err := dial(t, resp.Url).StreamWithContext(streamContext(t), remotecommand.StreamOptions{Stdout: &stdout, Stderr: io.Discard}); err != nil {
					t.Error(err)
				}
				if got := stdout.String(); len(got) != 3893 {
					t.Errorf("%d bytes", len(got))
				}
			}
		})
	})
}

type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

func TestExecWithTTYAndResize(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ctr := sleeper(t, c.Pod(t))
		protocols(t, func(t *testing.T, dial func(*testing.T, string) remotecommand.Executor) {
			resp, err := c.Exec(t.Context(), &cri.ExecRequest{ContainerId: ctr.ID, Tty: true, Stdin: true, Stdout: true, Cmd: []string{"sh"}})
			if err != nil {
				t.Fatal(err)
			}
			var out testkit.Buffer
			in, type_ := io.Pipe()
			resize := make(sizes, 2)
			done := make(chan error, 1)
			go func() {
				done <- dial(t, resp.Url).StreamWithContext(streamContext(t), remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: resize})
			}()
			resize <- remotecommand.TerminalSize{Width: 91, Height: 37}
			write := func(line string) { feed(t, type_, done, line+"\n") }
			write("tty; test -t 0 && echo ter''minal; echo term=$TERM")
			if c.Handler != gVisor { // where it is one of the machine outside, without a name
				holds(t, &out, "/dev/pts/")
			}
			holds(t, &out, "terminal")
			holds(t, &out, "term=xterm")
			write("while [ \"$(stty size)\" != '37 91' ]; do sleep 0.05; done; echo re''sized")
			holds(t, &out, "resized")
			resize <- remotecommand.TerminalSize{Width: 120, Height: 50}
			write("while [ \"$(stty size)\" != '50 120' ]; do sleep 0.05; done; echo a''gain")
			holds(t, &out, "again")
			write("exit 9")
			err = <-done
			close(resize)
			exit := new(utilexec.CodeExitError)
			if !errors.As(err, exit) || exit.Code != 9 {
				t.Errorf("err = %v, want exit code 9", err)
			}
			if err := type_.Close(); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestExecSync(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ctr := sleeper(t, c.Pod(t))
		got, err := ctr.ExecSync(t.Context(), "sh", "-c", "echo out; echo err >&2; exit 3")
		if err != nil {
			t.Fatal(err)
		}
		if string(got.Stdout) != "out\n" || string(got.Stderr) != "err\n" || got.ExitCode != 3 {
			t.Errorf("got %v", got)
		}
		begin := time.Now()
		_, err = c.RuntimeServiceClient.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: ctr.ID, Cmd: []string{"sh", "-c", "echo begun; sleep 600"}, Timeout: 1})
		testkit.WantCode(t, err, codes.DeadlineExceeded)
		if took := time.Since(begin); took > 15*time.Second {
			t.Errorf("took %s", took)
		}
		testkit.Until(t, 5*time.Second, func(context.Context) string {
			if got := ctr.Exec(t, "ps", "-o", "args"); strings.Contains(got, "sleep 600") {
				return "the process lives:\n" + got
			}
			return ""
		})
		if _, err := ctr.ExecSync(t.Context(), "/no/such/program"); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
			t.Errorf("err = %v", err)
		}
		_, err = c.RuntimeServiceClient.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: ctr.ID})
		testkit.WantCode(t, err, codes.InvalidArgument, "cmd")
		_, err = c.RuntimeServiceClient.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: ctr.ID, Cmd: []string{"true"}, Timeout: -1})
		testkit.WantCode(t, err, codes.InvalidArgument, "timeout")
	})
}

func TestExecSyncOutputIsCapped(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ctr := sleeper(t, c.Pod(t))
		_, err := ctr.ExecSync(t.Context(), "sh", "-c", "head -c 17000000 /dev/zero; exit 0")
		testkit.WantCode(t, err, codes.ResourceExhausted, "stdout", "Exec")
		got, err := ctr.ExecSync(t.Context(), "sh", "-c", "head -c 8000000 /dev/zero")
		if err != nil || len(got.Stdout) != 8_000_000 {
			t.Errorf("%d bytes, %v", len(got.GetStdout()), err)
		}
	})
}

// A child that keeps the output open does not keep ExecSync.
func TestExecSyncDoesNotWaitForDaemons(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ctr := sleeper(t, c.Pod(t))
		begin := time.Now()
		got, err := ctr.ExecSync(t.Context(), "sh", "-c", "sleep 300 & echo started")
		if err != nil || string(got.Stdout) != "started\n" {
			t.Errorf("got %v, %v", got, err)
		}
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

// A probe that meets the end of its container hears that, not how the runtime
// fails at it.
func TestExecMeetsTheEnd(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		for i := range 5 {
			ctr := sleeper(t, p)
			if i%2 == 1 { // the kernel takes its time to end all of them
				ctr = p.Container(t, busybox, []string{"sh", "-c", "i=0; while [ $i -lt 300 ]; do sleep 1000 & i=$((i+1)); done; echo up; wait"})
				ctr.Logged(t, "up")
			}
			errs := make(chan error, 4)
			for range cap(errs) {
				go func() {
					for {
						if _, err := ctr.ExecSync(t.Context(), "true"); err != nil {
							errs <- err
							return
						}
					}
				}()
			}
			ctr.Exec(t, "true")
			if err := ctr.Stop(t.Context(), 0); err != nil {
				t.Error(err)
			}
			for range cap(errs) {
				testkit.WantCode(t, <-errs, codes.FailedPrecondition)
			}
		}
	})
}

func TestExecNeedsARunningContainer(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		created, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"}))
		if err != nil {
			t.Fatal(err)
		}
		ended := p.Container(t, busybox, []string{"true"})
		ended.Exited(t)
		for _, ctr := range []*testkit.Container{created, ended} {
			_, err := ctr.ExecSync(t.Context(), "true")
			testkit.WantCode(t, err, codes.FailedPrecondition, ctr.ID)
			_, err = c.Exec(t.Context(), &cri.ExecRequest{ContainerId: ctr.ID, Stdout: true, Cmd: []string{"true"}})
			testkit.WantCode(t, err, codes.FailedPrecondition, ctr.ID)
			_, err = c.Attach(t.Context(), &cri.AttachRequest{ContainerId: ctr.ID, Stdout: true})
			testkit.WantCode(t, err, codes.FailedPrecondition, ctr.ID)
		}
	})
}

// feed writes the client's input; a session that has ended reads none.
func feed(t *testing.T, in io.Writer, done <-chan error, text string) {
	t.Helper()
	written := make(chan error, 1)
	go func() {
		_, err := io.WriteString(in, text)
		written <- err
	}()
	select {
	case err := <-written:
		if err != nil {
			t.Fatal(err)
		}
	case err := <-done:
		t.Fatalf("the session ended early: %v", err)
	}
}

func TestAttach(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		protocols(t, func(t *testing.T, dial func(*testing.T, string) remotecommand.Executor) {
			ctr := c.Pod(t).Container(t, busybox, []string{"sh", "-c", "while read line; do echo got $line; echo err $line >&2; done; echo end of input; sleep 1000"},
				func(c *cri.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
			resp, err := c.Attach(t.Context(), &cri.AttachRequest{ContainerId: ctr.ID, Stdin: true, Stdout: true, Stderr: true})
			if err != nil {
				t.Fatal(err)
			}
			var stdout, stderr testkit.Buffer
			in, write := io.Pipe()
			done := make(chan error, 1)
			go func() {
				done <- dial(t, resp.Url).StreamWithContext(streamContext(t), remotecommand.StreamOptions{Stdin: in, Stdout: &stdout, Stderr: &stderr})
			}()
			feed(t, write, done, "one\ntwo\n")
			holds(t, &stdout, "got two\n")
			holds(t, &stderr, "err two\n")
			// What an attached client sees is in the log too.
			ctr.Logged(t, "got two")
			if err := write.Close(); err != nil {
				t.Fatal(err)
			}
			ctr.Logged(t, "end of input") // stdin-once: closed with the client's
			if err := ctr.Stop(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	})
}

func TestAttachToTTY(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		protocols(t, func(t *testing.T, dial func(*testing.T, string) remotecommand.Executor) {
			ctr := c.Pod(t).Container(t, busybox, []string{"sh"}, func(c *cri.ContainerConfig) { c.Stdin, c.Tty = true, true })
			resp, err := c.Attach(t.Context(), &cri.AttachRequest{ContainerId: ctr.ID, Stdin: true, Stdout: true, Tty: true})
			if err != nil {
				t.Fatal(err)
			}
			var out testkit.Buffer
			in, write := io.Pipe()
			done := make(chan error, 1)
			go func() {
				done <- dial(t, resp.Url).StreamWithContext(streamContext(t), remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true})
			}()
			feed(t, write, done, "echo in a t''ty; exit 4\n")
			holds(t, &out, "in a tty")
			if err := <-done; err != nil {
				t.Error(err)
			}
			if s := ctr.Exited(t); s.ExitCode != 4 {
				t.Errorf("exit code %d", s.ExitCode)
			}
			if err := write.Close(); err != nil {
				t.Error(err)
			}
		})
	})
}

// A client that goes away leaves the container and the daemon as they are, and
// one that does not read does not slow the log.
func TestSlowAndLostAttachClients(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ctr := c.Pod(t).Container(t, busybox, []string{"sh", "-c", "sleep 0.3; seq 200000; echo the end; sleep 1000"})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		resp, err := c.Attach(t.Context(), &cri.AttachRequest{ContainerId: ctr.ID, Stdout: true})
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
		stuck, release := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: release}) // it is cut below
		}()
		ctr.Logged(t, "the end")
		cancel()
		if err := stuck.Close(); err != nil {
			t.Error(err)
		}
		<-done
		if s := ctr.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
			t.Errorf("got %v", s)
		}
	})
}

func forwarders(t *testing.T, address string) map[string]func(ports []string, stop <-chan struct{}, ready chan struct{}) (*portforward.PortForwarder, error) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]func([]string, <-chan struct{}, chan struct{}) (*portforward.PortForwarder, error){
		"SPDY": func(ports []string, stop <-chan struct{}, ready chan struct{}) (*portforward.PortForwarder, error) {
			transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
			if err != nil {
				return nil, err
			}
			dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
			return portforward.New(dialer, ports, stop, ready, io.Discard, io.Discard)
		},
	}
}

func TestPortForward(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		four, six6 := "127.0.0.1", "[::1]"
		if c.Handler == gVisor { // its loopback is inside
			four, six6 = "0.0.0.0", "[::]"
		}
		server := p.Container(t, busybox, []string{"sh", "-c", "mkdir /www && seq 100000 > /www/long && exec httpd -f -p " + four + ":8080 -h /www"})
		six := p.Container(t, busybox, []string{"sh", "-c", "mkdir /www && echo six > /www/six && exec httpd -f -p " + six6 + ":8081 -h /www"})
		resp, err := c.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{8080, 8081, 9}})
		if err != nil {
			t.Fatal(err)
		}
		for name, make_ := range forwarders(t, resp.Url) {
			t.Run(name, func(t *testing.T) {
				stop, ready := make(chan struct{}), make(chan struct{})
				f, err := make_([]string{"0:8080", "0:8081", "0:9"}, stop, ready)
				if err != nil {
					t.Fatal(err)
				}
				done := make(chan error, 1)
				go func() { done <- f.ForwardPorts() }()
				select {
				case <-ready:
				case err := <-done:
					t.Fatal(err)
				}
				ports, err := f.GetPorts()
				if err != nil {
					t.Fatal(err)
				}
				var want strings.Builder
				for i := range 100000 {
					fmt.Fprintln(&want, i+1)
				}
				for range 3 {
					wantPage(t, fmt.Sprintf("http://127.0.0.1:%d/long", ports[0].Local), want.String())
					wantPage(t, fmt.Sprintf("http://127.0.0.1:%d/six", ports[1].Local), "six\n")
				}
				// Nobody listens: the connection ends.
				conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[2].Local))
				if err != nil {
					t.Fatal(err)
				}
				if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if n, err := conn.Read(make([]byte, 1)); err == nil || n > 0 {
					t.Errorf("read %d bytes, %v", n, err)
				}
				_ = conn.Close() // reset already
				close(stop)
				<-done // client-go ends its whole session with the port's error
			})
		}
		for _, ctr := range []*testkit.Container{server, six} {
			if s := ctr.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
				t.Errorf("got %v", s)
			}
		}
	})
}

func TestPortForwardErrors(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		_, err := c.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: "0123abc", Port: []int32{80}})
		testkit.WantCode(t, err, codes.NotFound, "0123abc")
		p := c.Pod(t)
		if err := p.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err = c.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{80}})
		testkit.WantCode(t, err, codes.FailedPrecondition, p.ID)
	})
}
