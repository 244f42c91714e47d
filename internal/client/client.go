// Package client is the command line's side of the socket: it connects to a
// CRI server, resolves what a user types to pods, containers and images,
// explains errors, and carries the streams of exec, attach, port-forward and
// logs.
//
// Any CRI v1 server will do; berth's own Admin service is used where it is
// there. A Client is safe for concurrent use.
package client

import (
	"context"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	berthv1 "berth/api/berth/v1"
)

// DefaultAddress is the socket of a daemon with default configuration.
const DefaultAddress = "/run/berth/berth.sock"

const (
	// quickTimeout bounds the calls that only look.
	quickTimeout = 30 * time.Second
	// maxMessage is what a list of many pods may take.
	maxMessage = 64 << 20
)

// Address is the socket to use: the flag's, else BERTH_ADDRESS, else
// CONTAINER_RUNTIME_ENDPOINT (which crictl reads too), else the default.
func Address(flag string) string {
	for _, a := range []string{flag, os.Getenv("BERTH_ADDRESS"), os.Getenv("CONTAINER_RUNTIME_ENDPOINT")} {
		if a != "" {
			return a
		}
	}
	return DefaultAddress
}

// A Client is a connection to one CRI server.
type Client struct {
	Runtime runtime.RuntimeServiceClient
	Images  runtime.ImageServiceClient
	Admin   berthv1.AdminClient

	conn   *grpc.ClientConn
	socket string
}

// New prepares a connection to the unix socket at address, which is a path or
// a unix:// URL. It connects with the first call.
func New(address string) (*Client, error) {
	socket := strings.TrimPrefix(address, "unix://")
	if strings.Contains(socket, "://") || socket == "" {
		return nil, fmt.Errorf("address %q: want a unix socket: /path or unix:///path", address)
	}
	socket, err := filepath.Abs(socket)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", address, err)
	}
	c := &Client{socket: socket}
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	c.conn, err = grpc.NewClient("passthrough:///berth",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dial),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithUnaryInterceptor(c.unary),
		grpc.WithStreamInterceptor(c.stream),
	)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", address, err)
	}
	c.Runtime = runtime.NewRuntimeServiceClient(c.conn)
	c.Images = runtime.NewImageServiceClient(c.conn)
	c.Admin = berthv1.NewAdminClient(c.conn)
	return c, nil
}

// Socket is the path of the server's socket.
func (c *Client) Socket() string { return c.socket }

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// unary gives quick calls a deadline and explains errors.
func (c *Client) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if quick(path.Base(method)) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, quickTimeout)
		defer cancel()
	}
	return c.explain(invoke(ctx, method, req, reply, cc, opts...))
}

// quick tells whether a method only looks, or hands out an address.
func quick(method string) bool {
	if strings.HasPrefix(method, "List") {
		return true
	}
	switch method {
	case "Version", "Status", "RuntimeConfig", "PodSandboxStatus", "ContainerStatus", "ImageStatus", "ImageFsInfo",
		"ContainerStats", "PodSandboxStats", "Exec", "Attach", "PortForward":
		return true
	}
	return false
}

// stream explains errors of streams.
func (c *Client) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := streamer(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, c.explain(err)
	}
	return &explainedStream{ClientStream: s, client: c}, nil
}

type explainedStream struct {
	grpc.ClientStream
	client *Client
}

// RecvMsg implements grpc.ClientStream.
func (s *explainedStream) RecvMsg(m any) error { return s.client.explain(s.ClientStream.RecvMsg(m)) }
