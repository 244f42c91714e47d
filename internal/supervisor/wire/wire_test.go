package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// pair is both sides of a connection.
func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := func(fd int) *Conn {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() }) // some tests have closed it
		return &Conn{UnixConn: c.(*net.UnixConn)}
	}
	return conn(fds[0]), conn(fds[1])
}

// Messages, with descriptors or without, arrive whole and apart, however they
// were sent; what follows them is frames.
func TestMessages(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	long := Request{Version: Version, Op: OpTasks, ID: strings.Repeat("x", 10_000)}
	sent := make(chan error, 1)
	for _, want := range []Request{{Op: OpKeep}, long} { // one at a time: each is answered
		go func() { sent <- a.Send(want) }()
		var got Request
		if fds, err := b.Receive(&got); err != nil || len(fds) > 0 {
			t.Fatalf("%v, %v", fds, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Send(Request{Op: OpRestore, Files: []string{FileConsole}}, int(w.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := WriteFrame(a, FrameStderr, []byte("output")); err != nil {
		t.Fatal(err)
	}
	var got Request
	fds, err := b.Receive(&got)
	if err != nil || len(fds) != 1 {
		t.Fatalf("descriptors %v, %v", fds, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("an executed program would have it: %v", err)
	}
	stream, data, err := ReadFrame(b, nil)
	if err != nil || stream != FrameStderr || string(data) != "output" {
		t.Errorf("frame %d %q, %v", stream, data, err)
	}
	// It is the file that was sent.
	if _, err := unix.Write(fds[0], []byte("through")); err != nil {
		t.Fatal(err)
	}
	if err := Close(fds); err != nil {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if text, err := io.ReadAll(r); string(text) != "through" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if _, err := b.Receive(&got); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

// What the other side sends has limits, and a message that is none leaves no
// descriptor open.
func TestLimits(t *testing.T) {
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, e := range entries {
			if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == os.DevNull {
				n++
			}
		}
		return n
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	for name, send := range map[string]func(a *Conn){
		"no JSON": func(a *Conn) { _, _, _ = a.WriteMsgUnix([]byte("{\n"), unix.UnixRights(fd), nil) },
		"many files": func(a *Conn) {
			for range 3 {
				_, _, _ = a.WriteMsgUnix([]byte(" "), unix.UnixRights(fd, fd, fd, fd), nil)
			}
		},
		"a long line": func(a *Conn) { _, _ = a.Write(bytes.Repeat([]byte(" "), MaxLine+5000)) }, // cut by the refusal
	} {
		a, b := pair(t)
		before := open()
		sent := make(chan struct{})
		go func() { defer close(sent); send(a) }()
		var got Request
		if fds, err := b.Receive(&got); err == nil || errors.Is(err, io.EOF) || len(fds) > 0 {
			t.Errorf("%s: %v, %v", name, fds, err)
		}
		if now := open(); now != before {
			t.Errorf("%s: %d descriptors are open, %d were", name, now, before)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		<-sent
	}
	if _, err := Line(strings.Repeat("x", MaxLine)); err == nil {
		t.Error("a message that is too long can be sent")
	}
	if _, _, err := ReadFrame(strings.NewReader("\x01\x00\x10\x00\x01"), nil); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("a long frame: %v", err)
	}
	for _, cut := range []string{"", "\x01\x00", "\x01\x00\x00\x00\x05abc"} {
		if _, _, err := ReadFrame(strings.NewReader(cut), nil); err == nil {
			t.Errorf("the frame %q is taken for whole", cut)
		}
	}
}
