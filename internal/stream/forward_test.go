package stream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/websocket"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/host"
	"berth/internal/testkit"
)

// newNetNS makes a network namespace with its loopback up.
func newNetNS(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ns")
	if err := host.PinNamespaces(dir, host.NamespaceOptions{Net: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.UnpinNamespaces(dir); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "net")
	err := host.InNetNS(path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// listenIn serves address in a namespace; its port is returned.
func listenIn(t *testing.T, netns, address string, serve func(*net.TCPConn)) int32 {
	t.Helper()
	addr := testkit.Listen(t, netns, "tcp", address, func(c net.Conn) { serve(c.(*net.TCPConn)) })
	return int32(addr.(*net.TCPAddr).Port)
}

// answer reads to the end, then answers: it needs both ways to be closed on
// their own.
func answer(c *net.TCPConn) {
	data, err := io.ReadAll(c)
	if err != nil {
		return
	}
	fmt.Fprintf(c, "%d bytes %.20s", len(data), data)
}

// client is the near end of a connection that is given to Forward.
func client(t *testing.T, netns string, port int32) (*net.TCPConn, <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- Forward(t.Context(), netns, port, halfCloser{far.(*net.TCPConn)})
		far.Close()
	}()
	t.Cleanup(func() { near.Close() })
	return near.(*net.TCPConn), done
}

// halfCloser closes as a SPDY stream does: Close ends its own way, Reset both.
type halfCloser struct{ *net.TCPConn }

func (h halfCloser) Close() error { return h.CloseWrite() }
func (h halfCloser) Reset() error { return h.TCPConn.Close() }

func TestForward(t *testing.T) {
	netns := newNetNS(t)
	for _, tc := range []struct{ name, netns, address string }{
		{"IPv4", netns, "127.0.0.1:0"},
		{"IPv6", netns, "[::1]:0"},
		{"any address", netns, "[::]:0"},
		{"the host's namespace", "", "127.0.0.1:0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			near, done := client(t, tc.netns, listenIn(t, tc.netns, tc.address, answer))
			sent := bytes.Repeat([]byte("x"), 1<<20)
			if _, err := near.Write(sent); err != nil {
				t.Fatal(err)
			}
			if err := near.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(near)
			if want := fmt.Sprintf("%d bytes %.20s", len(sent), sent); err != nil || string(got) != want {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// The pod ends first; the client goes on sending.
func TestForwardPodEndsFirst(t *testing.T) {
	netns := newNetNS(t)
	received := make(chan string, 1)
	port := listenIn(t, netns, "127.0.0.1:0", func(c *net.TCPConn) {
		fmt.Fprint(c, "hello")
		c.CloseWrite()
		data, _ := io.ReadAll(c)
		received <- string(data)
	})
	near, done := client(t, netns, port)
	if got, err := io.ReadAll(near); string(got) != "hello" || err != nil {
		t.Fatalf("got %q, %v", got, err)
	}
	fmt.Fprint(near, "late")
	near.CloseWrite()
	if got := <-received; got != "late" {
		t.Errorf("the pod received %q", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestForwardFails(t *testing.T) {
	netns := newNetNS(t)
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	err := Forward(t.Context(), netns, 81, far)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "127.0.0.1:81") || !strings.Contains(err.Error(), "[::1]:81") ||
		!strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody listens: %v", err)
	}
	if err := Forward(t.Context(), netns, 0, far); !errdefs.IsInvalidArgument(err) {
		t.Errorf("port 0: %v", err)
	}
	if err := Forward(t.Context(), "/nonexistent", 80, far); !errdefs.IsNotFound(err) {
		t.Errorf("no namespace: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Forward(ctx, netns, 80, far); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
}

func TestForwardPodBreaksOff(t *testing.T) {
	netns := newNetNS(t)
	port := listenIn(t, netns, "127.0.0.1:0", func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		c.SetLinger(0) // close sends a reset
	})
	near, done := client(t, netns, port)
	fmt.Fprint(near, "x")
	if _, err := io.ReadAll(near); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "broke off") {
		t.Errorf("err = %v", err)
	}
}

// The client and the pod say nothing when the context ends.
func TestForwardEndsWithItsContext(t *testing.T) {
	netns := newNetNS(t)
	accepted := make(chan struct{})
	port := listenIn(t, netns, "127.0.0.1:0", func(c *net.TCPConn) {
		close(accepted)
		io.Copy(io.Discard, c)
	})
	near, far := net.Pipe()
	defer near.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Forward(ctx, netns, port, far) }()
	<-accepted
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestHalfOpenIsBounded(t *testing.T) {
	netns := newNetNS(t)
	port := listenIn(t, netns, "127.0.0.1:0", func(c *net.TCPConn) {
		c.CloseWrite()
		io.Copy(io.Discard, c)
	})
	pod, err := dialPort(t.Context(), netns, uint16(port), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	near, far := tcpPair(t)
	defer near.Close()
	err = pipe(t.Context(), pod, halfCloser{far}, 20*time.Millisecond)
	if !errdefs.IsAborted(err) {
		t.Errorf("err = %v", err)
	}
}

func tcpPair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return n.(*net.TCPConn), f.(*net.TCPConn)
}

// kubectl's own client, from a local port to one in a pod.
func TestPortForwardClient(t *testing.T) {
	netns := newNetNS(t)
	s := startServer(t, fake{forward: func(ctx context.Context, port int32, data io.ReadWriteCloser) error {
		return Forward(ctx, netns, port, data)
	}})
	port := listenIn(t, netns, "127.0.0.1:0", answer)
	local := forwardPorts(t, s, port)
	for range 3 {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", local[0]))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, "question")
		c.(*net.TCPConn).CloseWrite()
		got, err := io.ReadAll(c)
		if want := "8 bytes question"; err != nil || string(got) != want {
			t.Errorf("got %q, %v", got, err)
		}
		c.Close()
	}
}

// What the client is told when nothing listens.
func TestPortForwardError(t *testing.T) {
	netns := newNetNS(t)
	s := startServer(t, fake{forward: func(ctx context.Context, port int32, data io.ReadWriteCloser) error {
		return Forward(ctx, netns, port, data)
	}})
	conn, _, err := dialer(t, s).Dial("portforward.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	header := http.Header{"Port": {"81"}, "Requestid": {"0"}, "Streamtype": {"error"}}
	errors, err := conn.CreateStream(header)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan string, 1)
	go func() { // as client-go does
		text, _ := io.ReadAll(errors)
		told <- string(text)
	}()
	header = header.Clone()
	header.Set("Streamtype", "data")
	if _, err := conn.CreateStream(header); err != nil {
		t.Fatal(err)
	}
	if text := <-told; !strings.Contains(text, "nothing answers on port 81") || !strings.Contains(text, "refused") {
		t.Errorf("told %q", text)
	}
}

func dialer(t *testing.T, s *Server) httpstream.Dialer {
	t.Helper()
	resp, err := s.PortForward(&runtime.PortForwardRequest{PodSandboxId: "p1"})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(resp.Url)
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
}

// forwardPorts runs client-go's port forwarder until the test ends, and returns
// the local ports.
func forwardPorts(t *testing.T, s *Server, ports ...int32) []uint16 {
	t.Helper()
	var specs []string
	for _, p := range ports {
		specs = append(specs, fmt.Sprintf("0:%d", p))
	}
	stop, ready, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	fw, err := portforward.NewOnAddresses(dialer(t, s), []string{"127.0.0.1"}, specs, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	go func() { done <- fw.ForwardPorts() }()
	t.Cleanup(func() {
		close(stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- err
		t.Fatal(err)
	}
	got, err := fw.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	var local []uint16
	for _, p := range got {
		local = append(local, p.Local)
	}
	return local
}

// Port-forward over WebSocket, as CRI clients speak it: channels of data and
// errors, each of which begins with the port.
func TestPortForwardWebSocket(t *testing.T) {
	netns := newNetNS(t)
	s := startServer(t, fake{forward: func(ctx context.Context, port int32, data io.ReadWriteCloser) error {
		return Forward(ctx, netns, port, data)
	}})
	port := listenIn(t, netns, "127.0.0.1:0", func(c *net.TCPConn) {
		line, _ := bufio.NewReader(c).ReadString('\n')
		fmt.Fprint(c, "you said "+line)
	})
	resp, err := s.PortForward(&runtime.PortForwardRequest{PodSandboxId: "p1", Port: []int32{port}})
	if err != nil {
		t.Fatal(err)
	}
	config, err := websocket.NewConfig(strings.Replace(resp.Url, "http:", "ws:", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v4.channel.k8s.io"}
	ws, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if err := websocket.Message.Send(ws, append([]byte{0}, "hi\n"...)); err != nil {
		t.Fatal(err)
	}
	var data bytes.Buffer
	for {
		var frame []byte
		if err := websocket.Message.Receive(ws, &frame); err != nil {
			break
		}
		if frame[0] == 0 {
			data.Write(frame[1:])
		}
	}
	want := append([]byte{byte(port), byte(port >> 8)}, "you said hi\n"...)
	if !bytes.Equal(data.Bytes(), want) {
		t.Errorf("received %q, want %q", data.Bytes(), want)
	}
}

// A client that goes away ends its forwarded connections, though the pod says
// nothing.
func TestPortForwardClientGone(t *testing.T) {
	netns := newNetNS(t)
	ended := make(chan struct{})
	s := startServer(t, fake{forward: func(ctx context.Context, port int32, data io.ReadWriteCloser) error {
		defer close(ended)
		return Forward(ctx, netns, port, data)
	}})
	accepted := make(chan struct{})
	port := listenIn(t, netns, "127.0.0.1:0", func(c *net.TCPConn) {
		close(accepted)
		<-ended // neither reads nor writes
	})
	t.Run("session", func(t *testing.T) {
		local := forwardPorts(t, s, port)
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", local[0]))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		<-accepted
	}) // the client is stopped here
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the forwarded connection goes on")
	}
}
