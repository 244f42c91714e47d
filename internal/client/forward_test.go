package client_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
	"berth/internal/testkit/fakecri"
)

// A mute streaming server carries a number of connections to a real one, and
// then accepts and says nothing.
type mute struct {
	runtime.RuntimeServiceClient
	t        *testing.T
	l        net.Listener
	real     chan string
	accepted chan net.Conn // those that are not answered

	mu      sync.Mutex // guards answers and lines
	answers int
	lines   []net.Conn
}

func newMute(t *testing.T, cl *client.Client, answers int) *mute {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mute{RuntimeServiceClient: cl.Runtime, t: t, l: l, real: make(chan string, 10), accepted: make(chan net.Conn, 10), answers: answers}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			real := <-m.real
			m.mu.Lock()
			answered := m.answers > 0
			m.answers--
			m.lines = append(m.lines, conn)
			m.mu.Unlock()
			if !answered {
				m.accepted <- conn
				continue
			}
			serving.Go(func() { relay(conn, real) })
		}
	})
	t.Cleanup(func() { l.Close(); m.cut(); serving.Wait() })
	cl.Runtime = m
	return m
}

func relay(conn net.Conn, address string) {
	defer conn.Close()
	to, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() { io.Copy(conn, to) })
	io.Copy(to, conn)
	to.Close()
	back.Wait()
}

// cut breaks all connections.
func (m *mute) cut() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.lines {
		c.Close()
	}
}

// PortForward implements runtime.RuntimeServiceClient.
func (m *mute) PortForward(ctx context.Context, req *runtime.PortForwardRequest, opts ...grpc.CallOption) (*runtime.PortForwardResponse, error) {
	resp, err := m.RuntimeServiceClient.PortForward(ctx, req, opts...)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(resp.Url)
	if err != nil {
		return nil, err
	}
	m.real <- u.Host
	u.Host = m.l.Addr().String()
	return &runtime.PortForwardResponse{Url: u.String()}, nil
}

// A server that accepts and does not answer holds nobody who gives up.
func TestForwardToMuteServer(t *testing.T) {
	cl := connect(t, &fakecri.Server{Streams: streams{}})
	m := newMute(t, cl, 0)
	ctx, cancel := context.WithCancel(deadline(t))
	done := make(chan error, 1)
	go func() {
		_, err := cl.Forward(ctx, "pod")
		done <- err
	}()
	<-m.accepted
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// Nor does it hold Close, and the next connection to a broken line makes a new
// one.
func TestForwardCloses(t *testing.T) {
	cl := connect(t, &fakecri.Server{Streams: streams{}})
	m := newMute(t, cl, 2)
	ctx := deadline(t)
	f, err := cl.Forward(ctx, "pod")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	failures := make(chan error, 10)
	done := make(chan error, 1)
	go func() { done <- f.Serve(ctx, l, 80, func(err error) { failures <- err }) }()
	open := func() net.Conn {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	m.cut()
	for answer := ""; answer == ""; { // one connection may still meet the old line
		conn := open()
		if _, err := io.WriteString(conn, "text"); err == nil {
			conn.(*net.TCPConn).CloseWrite()
			text, _ := io.ReadAll(conn)
			answer = string(text)
		}
		conn.Close()
		if ctx.Err() != nil {
			t.Fatal("no answer over a new line")
		}
	}
	for len(failures) > 0 {
		<-failures
	}
	m.cut()
	held := make(chan struct{})
	go func() { // until one meets that the line is broken
		defer close(held)
		for len(m.accepted) == 0 && ctx.Err() == nil {
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return
			}
			io.WriteString(conn, "text")
			conn.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, conn)
			conn.Close()
		}
	}()
	<-m.accepted
	l.Close()
	if err := f.Close(); err != nil {
		t.Log(err) // of a line that is broken already
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	<-held
}
