package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"berth/internal/client"
	"berth/internal/testkit/fakecri"
)

// streams runs commands that are words of this file.
type streams struct {
	refused int32 // a port at which nothing answers
}

var _ streaming.Runtime = streams{}

// Exec implements streaming.Runtime.
func (streams) Exec(_ context.Context, _ string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	switch cmd[0] {
	case "hi":
		fmt.Fprint(out, "hi")
	case "both":
		fmt.Fprint(out, "out")
		fmt.Fprint(errOut, "err")
	case "cat":
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
		fmt.Fprint(out, ".")
	case "exit":
		return utilexec.CodeExitError{Err: errors.New("ended"), Code: 42}
	case "fail":
		return errors.New("cannot")
	case "much":
		_, err := io.Copy(out, io.LimitReader(endless{}, 3<<20))
		return err
	case "size":
		s := <-resize
		fmt.Fprintf(out, "%dx%d", s.Width, s.Height)
	}
	return nil
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// Attach implements streaming.Runtime: it sends back what comes.
func (streams) Attach(_ context.Context, _ string, in io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	_, err := io.Copy(out, in)
	return err
}

// PortForward implements streaming.Runtime: it sends back what comes, in upper
// case.
func (s streams) PortForward(_ context.Context, pod string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	if port == s.refused {
		return fmt.Errorf("nothing answers on port %d", port)
	}
	text, err := io.ReadAll(stream)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stream, "%s %d: %s", pod, port, bytes.ToUpper(text))
	return err
}

func connect(t *testing.T, s *fakecri.Server) *client.Client {
	t.Helper()
	fakecri.Start(t, s)
	cl, err := client.New(s.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cl.Close(); err != nil {
			t.Error(err)
		}
	})
	return cl
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestExec(t *testing.T) {
	cl := connect(t, &fakecri.Server{Streams: streams{}})
	for _, test := range []struct {
		name      string
		command   string
		in        string
		tty       bool
		transport string
		out, err  string
		code      int
		fails     string
	}{
		{name: "both outputs", command: "both", out: "out", err: "err"},
		{name: "both outputs by SPDY", command: "both", transport: client.TransportSPDY, out: "out", err: "err"},
		{name: "stdin ends", command: "cat", in: "some text", out: "some text."},
		{name: "much stdin", command: "cat", in: strings.Repeat("0123456789", 100_000), out: strings.Repeat("0123456789", 100_000) + "."},
		{name: "exit code", command: "exit", code: 42},
		{name: "exit code by SPDY", command: "exit", transport: client.TransportSPDY, code: 42},
		{name: "failure", command: "fail", fails: "cannot"},
		{name: "much output", command: "much", out: strings.Repeat("x", 3<<20)},
		{name: "much output by SPDY", command: "much", transport: client.TransportSPDY, out: strings.Repeat("x", 3<<20)},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			req := client.StreamRequest{ContainerID: "c", Command: []string{test.command}, Stdout: &out, Stderr: &errOut, TTY: test.tty, Transport: test.transport}
			if test.in != "" {
				req.Stdin = strings.NewReader(test.in)
			}
			err := cl.Stream(deadline(t), req)
			var code client.ExitCode
			switch {
			case test.fails != "":
				if err == nil || !strings.Contains(err.Error(), test.fails) {
					t.Errorf("error %v, want %q", err, test.fails)
				}
			case errors.As(err, &code):
				if int(code) != test.code {
					t.Errorf("exit code %d, want %d", code, test.code)
				}
			case err != nil || test.code != 0:
				t.Errorf("error %v, want exit code %d", err, test.code)
			}
			if out.String() != test.out {
				t.Errorf("stdout is %d bytes %.50q, want %d bytes %.50q", out.Len(), out.String(), len(test.out), test.out)
			}
			if errOut.String() != test.err {
				t.Errorf("stderr %q, want %q", errOut.String(), test.err)
			}
		})
	}
}

// What a command wrote just before its end arrives, terminal or not, however
// quick it was.
func TestExecLosesNothing(t *testing.T) {
	cl := connect(t, &fakecri.Server{Streams: streams{}})
	for _, transport := range []string{client.TransportWebSocket, client.TransportSPDY} {
		for _, tty := range []bool{false, true} {
			for range 50 {
				var out bytes.Buffer
				err := cl.Stream(deadline(t), client.StreamRequest{ContainerID: "c", Command: []string{"hi"}, Stdout: &out, Stderr: io.Discard, TTY: tty, Transport: transport})
				if err != nil || out.String() != "hi" {
					t.Fatalf("%s, tty %v: %q, %v", transport, tty, out.String(), err)
				}
			}
		}
	}
}

func TestAttach(t *testing.T) {
	cl := connect(t, &fakecri.Server{Streams: streams{}})
	var out bytes.Buffer
	err := cl.Stream(deadline(t), client.StreamRequest{ContainerID: "c", Stdin: strings.NewReader("typed"), Stdout: &out, Stderr: io.Discard})
	if err != nil || out.String() != "typed" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

// A connection that is refused in the pod ends alone: those beside and after it
// are carried.
func TestForward(t *testing.T) {
	cl := connect(t, &fakecri.Server{Streams: streams{refused: 9}})
	ctx := deadline(t)
	f, err := cl.Forward(ctx, "pod")
	if err != nil {
		t.Fatal(err)
	}
	failures := make(chan error, 10)
	addresses := map[uint16]string{}
	done := make(chan error, 2)
	var listeners []net.Listener
	for _, port := range []uint16{80, 9} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		addresses[port] = l.Addr().String()
		go func() { done <- f.Serve(ctx, l, port, func(err error) { failures <- err }) }()
	}
	ask := func(port uint16, text string) string {
		conn, err := net.Dial("tcp", addresses[port])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, text); err != nil {
			return ""
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			return ""
		}
		got, _ := io.ReadAll(conn) // an error is an answer too: none
		return string(got)
	}
	for range 3 {
		if got, want := ask(80, "text"), "pod 80: TEXT"; got != want {
			t.Fatalf("answer %q, want %q", got, want)
		}
		if got := ask(9, "text"); got != "" {
			t.Fatalf("answer %q from a port at which nothing answers", got)
		}
		if err := <-failures; !strings.Contains(err.Error(), "nothing answers on port 9") {
			t.Errorf("failure %q", err)
		}
	}
	for _, l := range listeners {
		l.Close()
	}
	for range listeners {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}
