package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/httpstream/spdy"
	clientspdy "k8s.io/client-go/transport/spdy"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// portForwardProtocol is the protocol of CRI servers' port-forward streams.
const portForwardProtocol = "portforward.k8s.io"

// A Forwarder carries connections to ports of one pod. A connection that the
// pod refuses fails alone, and a broken line to the server is made anew for the
// next one: client-go's own forwarder ends with the first of either.
//
// It is safe for concurrent use. Nothing waits for a server under its mutex, and
// Close ends what waits.
type Forwarder struct {
	client *Client
	pod    string

	life    context.Context // ends with Close
	end     context.CancelFunc
	dialing chan struct{} // holds one element while a line is made

	mu   sync.Mutex // guards the rest
	line httpstream.Connection
	next int // ID of the next request on the line
}

// Forward returns a Forwarder to the pod, after one line to the server has been
// made.
func (c *Client) Forward(ctx context.Context, podID string) (*Forwarder, error) {
	f := &Forwarder{client: c, pod: podID, dialing: make(chan struct{}, 1)}
	f.life, f.end = context.WithCancel(context.WithoutCancel(ctx))
	if _, _, err := f.connect(ctx); err != nil {
		f.end()
		return nil, err
	}
	return f, nil
}

// Close ends the line and with it all connections.
func (f *Forwarder) Close() error {
	f.end()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.line == nil {
		return nil
	}
	return f.line.Close()
}

// connect is the line to the server and an ID for a request on it.
func (f *Forwarder) connect(ctx context.Context) (httpstream.Connection, string, error) {
	if line, id := f.request(); line != nil {
		return line, id, nil
	}
	select {
	case f.dialing <- struct{}{}:
		defer func() { <-f.dialing }()
	case <-ctx.Done():
		return nil, "", ctx.Err()
	case <-f.life.Done():
		return nil, "", net.ErrClosed
	}
	if line, id := f.request(); line != nil { // made meanwhile
		return line, id, nil
	}
	line, err := f.dial(ctx)
	if err != nil {
		return nil, "", err
	}
	f.mu.Lock()
	f.line = line
	f.mu.Unlock()
	if f.life.Err() != nil { // Close may have come before the line
		return nil, "", errors.Join(net.ErrClosed, line.Close())
	}
	line, id := f.request()
	if line == nil {
		return nil, "", errors.New("the server closed the line at once")
	}
	return line, id, nil
}

// request is a new request's ID on the line, which is nil where it is broken or
// has not been made.
func (f *Forwarder) request() (httpstream.Connection, string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.line == nil || f.life.Err() != nil {
		return nil, ""
	}
	select {
	case <-f.line.CloseChan():
		f.line = nil
		return nil, ""
	default:
	}
	f.next++
	return f.line, strconv.Itoa(f.next)
}

// lineTimeout bounds the making of a line; pingPeriod is between looks at
// whether it still stands.
const (
	lineTimeout = 30 * time.Second
	pingPeriod  = 5 * time.Second
)

// dial makes a line, until ctx ends or the Forwarder is closed.
func (f *Forwarder) dial(ctx context.Context) (httpstream.Connection, error) {
	ctx, cancel := context.WithTimeout(ctx, lineTimeout)
	defer cancel()
	defer context.AfterFunc(f.life, cancel)()
	resp, err := f.client.Runtime.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: f.pod})
	if err != nil {
		return nil, err
	}
	line, protocol, err := upgrade(ctx, resp.Url)
	if err != nil {
		if f.life.Err() != nil {
			return nil, net.ErrClosed
		}
		return nil, err
	}
	if protocol != portForwardProtocol {
		return nil, errors.Join(fmt.Errorf("the server speaks %q, not %q", protocol, portForwardProtocol), line.Close())
	}
	return line, nil
}

// upgrade connects to a streaming address. The end of ctx breaks a connection
// that is not upgraded yet: a server may accept it and say nothing.
func upgrade(ctx context.Context, address string) (httpstream.Connection, string, error) {
	kept := func() bool { return true }
	transport, err := spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{
		PingPeriod: pingPeriod,
		UpgradeTransport: &http.Transport{DialContext: func(dialCtx context.Context, network, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(dialCtx, network, addr)
			if err == nil {
				kept = context.AfterFunc(ctx, func() { conn.Close() }) // whoever reads from it has the error
			}
			return conn, err
		}},
	})
	if err != nil {
		return nil, "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, nil)
	if err != nil {
		return nil, "", fmt.Errorf("streaming address: %w", err)
	}
	line, protocol, err := clientspdy.Negotiate(transport, &http.Client{Transport: transport}, req, portForwardProtocol)
	if broken := !kept(); broken || err != nil && ctx.Err() != nil {
		if err == nil {
			err = line.Close()
		}
		return nil, "", errors.Join(fmt.Errorf("the server at %s does not answer: %w", req.URL.Host, context.Cause(ctx)), err)
	}
	return line, protocol, err
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
