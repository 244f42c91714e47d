package hold

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a server until the test ends it or it ends by itself.
func start(t *testing.T, state string, linger time.Duration) (ended <-chan error, cancel func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	s := &Server{State: state, Linger: linger, Ready: func() { close(ready) }}
	finished := make(chan struct{})
	go func() { defer close(finished); done <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-finished })
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	return done, cancel
}

func connect(t *testing.T, state string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(state, Dir, Socket))
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { c.Close() })
	return c
}

func ask(t *testing.T, c net.Conn, in *bufio.Reader, request string) string {
	t.Helper()
	if _, err := c.Write([]byte(request + "\n")); err != nil {
		t.Fatal(err)
	}
	answer, err := in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestProtocol(t *testing.T) {
	state := t.TempDir()
	start(t, state, time.Minute)
	if err := unix.Mkfifo(filepath.Join(state, "f"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := connect(t, state)
	in := bufio.NewReader(c)
	for _, test := range []struct{ request, answer string }{
		{`{"v":1,"op":"keep","key":"k","paths":["f"]}`, `{"v":1,"ok":true}`},
		{`{"v":1,"op":"keys"}`, `"keys":{"k":["f"]}`},
		{`{"v":1,"op":"keep","key":"k","paths":["f","none"]}`, `no such file or directory`},
		{`{"v":1,"op":"keep","key":"k","paths":["../f"]}`, `"ok":false`},
		{`{"v":1,"op":"keep","key":"k","paths":["/dev/null"]}`, `"ok":false`},
		{`{"v":1,"op":"keep","key":"k","paths":["supervisor"]}`, `not a FIFO`},
		{`{"v":1,"op":"keys"}`, `"keys":{"k":["f"]}`},
		{`{"v":1,"op":"release","key":"k"}`, `{"v":1,"ok":true}`},
		{`{"v":1,"op":"keys"}`, `{"v":1,"ok":true,"pid":`},
		{`{"v":2,"op":"keys"}`, `version 2, this process knows 1`},
		{`{"v":1,"op":"nonsense"}`, `is unknown`},
		{`{"v":1,"op":"keys","more":1}`, `not understood`},
		{`[]`, `not understood`},
		{``, `not understood`},
	} {
		if got := ask(t, c, in, test.request); !strings.Contains(got, test.answer) {
			t.Errorf("%s: %s, want %s", test.request, got, test.answer)
		}
	}
	if got := ask(t, c, in, strings.Repeat(" ", MaxLine)); !strings.Contains(got, "longer than") {
		t.Errorf("too long a request: %s", got)
	}
	if _, err := in.ReadByte(); err == nil {
		t.Error("the connection stays after too long a request")
	}
	// One that goes in the middle of a request harms nobody.
	half := connect(t, state)
	half.Write([]byte(`{"v":1,`))
	half.Close()
	c = connect(t, state)
	if got := ask(t, c, bufio.NewReader(c), `{"v":1,"op":"keys"}`); !strings.Contains(got, `"ok":true`) {
		t.Errorf("after it: %s", got)
	}
}

func TestOneServer(t *testing.T) {
	state := t.TempDir()
	start(t, state, time.Minute)
	if err := (&Server{State: state}).Run(t.Context()); !errors.Is(err, ErrRunning) {
		t.Errorf("second server: %v", err)
	}
	connect(t, state)
}

// A server ends when it has nothing to do, not before, and takes its socket
// along.
func TestEndsByItself(t *testing.T) {
	state := t.TempDir()
	const linger = 20 * time.Millisecond
	ended, _ := start(t, state, linger)
	c := connect(t, state)
	in := bufio.NewReader(c)
	stays := func(why string) {
		t.Helper()
		select {
		case err := <-ended:
			t.Fatalf("ended with %s: %v", why, err)
		case <-time.After(5 * linger):
		}
	}
	stays("a client")
	if err := unix.Mkfifo(filepath.Join(state, "f"), 0o600); err != nil {
		t.Fatal(err)
	}
	ask(t, c, in, `{"v":1,"op":"keep","key":"k","paths":["f"]}`)
	c.Close()
	stays("something held")
	c = connect(t, state)
	ask(t, c, bufio.NewReader(c), `{"v":1,"op":"release","key":"k"}`)
	c.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("stays with nothing to do")
	}
	if _, err := os.Lstat(filepath.Join(state, Dir, Socket)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket: %v", err)
	}
}

// A server whose client took its leave does not wait for another, unless there
// is something to hold.
func TestLeave(t *testing.T) {
	state := t.TempDir()
	ended, _ := start(t, state, time.Hour)
	if err := unix.Mkfifo(filepath.Join(state, "f"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, last := range []string{`{"v":1,"op":"keep","key":"k","paths":["f"]}`, `{"v":1,"op":"release","key":"k"}`} {
		c := connect(t, state)
		in := bufio.NewReader(c)
		for _, request := range []string{last, `{"v":1,"op":"leave"}`} {
			if got := ask(t, c, in, request); !strings.Contains(got, `"ok":true`) {
				t.Fatalf("%s: %s", request, got)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("stays after its client has left")
	}
}

func TestStaleSocket(t *testing.T) {
	state := t.TempDir()
	if err := os.MkdirAll(filepath.Join(state, Dir), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(state, Dir, Socket)})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	start(t, state, time.Minute)
	connect(t, state)
	if fi, err := os.Stat(filepath.Join(state, Dir)); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", fi.Mode(), err)
	}
}
