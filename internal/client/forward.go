package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport/spdy"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// portForwardProtocol is the protocol of CRI servers' port-forward streams.
const portForwardProtocol = "portforward.k8s.io"

// A Forwarder carries connections to ports of one pod. A connection that the
// pod refuses fails alone, and a broken line to the server is made anew for the
// next one: client-go's own forwarder ends with the first of either.
//
// It is safe for concurrent use.
type Forwarder struct {
	client *Client
	pod    string

	mu     sync.Mutex // guards the rest
	line   httpstream.Connection
	next   int // ID of the next request on the line
	closed bool
}

// Forward returns a Forwarder to the pod, after one line to the server has been
// made.
func (c *Client) Forward(ctx context.Context, podID string) (*Forwarder, error) {
	f := &Forwarder{client: c, pod: podID}
	if _, _, err := f.connect(ctx); err != nil {
		return nil, err
	}
	return f, nil
}

// Close ends the line and with it all connections.
func (f *Forwarder) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.line == nil {
		return nil
	}
	return f.line.Close()
}

// connect is the line to the server and an ID for a request on it.
func (f *Forwarder) connect(ctx context.Context) (httpstream.Connection, string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, "", net.ErrClosed
	}
	if f.line != nil {
		select {
		case <-f.line.CloseChan():
			f.line = nil
		default:
		}
	}
	if f.line == nil {
		line, err := f.dial(ctx)
		if err != nil {
			return nil, "", err
		}
		f.line = line
	}
	f.next++
	return f.line, strconv.Itoa(f.next), nil
}

func (f *Forwarder) dial(ctx context.Context) (httpstream.Connection, error) {
	resp, err := f.client.Runtime.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: f.pod})
	if err != nil {
		return nil, err
	}
	address, err := url.Parse(resp.Url)
	if err != nil {
		return nil, fmt.Errorf("streaming address: %w", err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		return nil, err
	}
	line, protocol, err := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", address).Dial(portForwardProtocol)
	if err != nil {
		return nil, err
	}
	if protocol != portForwardProtocol {
		return nil, errors.Join(fmt.Errorf("the server speaks %q, not %q", protocol, portForwardProtocol), line.Close())
	}
	return line, nil
}

// Serve accepts connections until the listener is closed, and carries each to
// the pod's port. Report is told of a connection that failed. It returns when
// all connections have ended.
func (f *Forwarder) Serve(ctx context.Context, l net.Listener, port uint16, report func(error)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		wg.Go(func() {
			if err := f.carry(ctx, conn, port); err != nil && ctx.Err() == nil {
				report(fmt.Errorf("connection to port %d: %w", port, err))
			}
		})
	}
}

// carry carries one connection.
func (f *Forwarder) carry(ctx context.Context, conn net.Conn, port uint16) (err error) {
	defer conn.Close() // after both directions have ended: nothing is lost
	line, id, err := f.connect(ctx)
	if err != nil {
		return err
	}
	header := http.Header{}
	header.Set(corev1.PortHeader, strconv.Itoa(int(port)))
	header.Set(corev1.PortForwardRequestIDHeader, id)
	header.Set(corev1.StreamType, corev1.StreamTypeError)
	failure, err := line.CreateStream(header)
	if err != nil {
		return err
	}
	defer line.RemoveStreams(failure)
	if err := failure.Close(); err != nil { // of our direction
		return err
	}
	header.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := line.CreateStream(header)
	if err != nil {
		return err
	}
	defer line.RemoveStreams(data)
	refused := make(chan error, 1)
	go func() { // ends with the stream, which carry resets
		text, err := io.ReadAll(failure)
		if len(text) > 0 {
			err = errors.New(forwardFailure(string(text)))
		}
		refused <- err
	}()
	both(conn, data)
	// What has not been sent would keep the server from ending.
	if err := data.Reset(); err != nil {
		return err
	}
	return <-refused
}

// forwardFailure is the server's reason on one line, without the preface that
// names the pod by its ID ("error forwarding port 80 to pod ID, uid : reason").
func forwardFailure(text string) string {
	if preface, reason, found := strings.Cut(text, ", uid : "); found && strings.HasPrefix(preface, "error forwarding port") {
		text = reason
	}
	return strings.ReplaceAll(strings.TrimSpace(text), "\n", "; ")
}

// both copies in both directions until the pod's side has ended.
func both(conn net.Conn, data httpstream.Stream) {
	var wg sync.WaitGroup
	wg.Go(func() {
		// An error is the other side's end, or comes on the error stream.
		_, _ = io.Copy(data, conn)
		_ = data.Close()
	})
	_, _ = io.Copy(conn, data)
	// Wakes the other direction, which may wait for a client without words.
	_ = conn.Close()
	wg.Wait()
}
