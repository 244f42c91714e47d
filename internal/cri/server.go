package cri

import (
	"context"
	"errors"
	"log/slog"
	"path"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	berthv1 "berth/api/berth/v1"
	"berth/internal/container"
	"berth/internal/engine"
	"berth/internal/events"
	"berth/internal/host"
	"berth/internal/image"
	"berth/internal/network"
	"berth/internal/paths"
	"berth/internal/record"
	"berth/internal/sandbox"
	"berth/internal/spec"
	"berth/internal/stats"
)

// maxMessage bounds a request and a response, as a kubelet's client does; a
// larger one is refused.
const maxMessage = 16 << 20

// writeBuffer is what a connection collects before it is written.
const writeBuffer = 128 << 10

// Streams hands out the URLs of streams; internal/stream implements it.
type Streams interface {
	Exec(*runtime.ExecRequest) (*runtime.ExecResponse, error)
	Attach(*runtime.AttachRequest) (*runtime.AttachResponse, error)
	PortForward(*runtime.PortForwardRequest) (*runtime.PortForwardResponse, error)
}

// Metrics count calls; internal/telemetry implements it.
type Metrics interface {
	// BeginCall counts a call of method; end is called with its gRPC code.
	BeginCall(method string) (end func(code string))
}

// Options configure a Server. All are required.
type Options struct {
	Sandboxes  *sandbox.Service
	Containers *container.Service
	Images     *image.Store
	Network    *network.Network
	Engine     *engine.Engine
	Store      *record.Store
	Stats      *stats.Reader
	Cgroups    *host.Cgroups
	Streams    Streams
	Events     *events.Bus[*runtime.ContainerEventResponse]
	Metrics    Metrics
	Paths      paths.Paths
	Kernel     spec.Kernel
	// Handlers are the runtime handlers' names, in order.
	Handlers []string
	// RecursiveReadOnly tells whether a handler, "" being the default one, makes
	// mounts read-only with all below them.
	RecursiveReadOnly func(handler string) bool
	// UserNamespaces tells whether pods of a handler, "" being the default one,
	// can have user namespaces.
	UserNamespaces func(handler string) bool
	// FSPath is the directory that the use of file systems is reported for.
	FSPath string
	// Config is shown by a verbose Status.
	Config any
	Log    *slog.Logger
}

// A Server implements the services.
type Server struct {
	runtime.UnimplementedRuntimeServiceServer
	runtime.UnimplementedImageServiceServer
	Options
	containers *prepared[record.Container]
	sandboxes  *prepared[record.Sandbox]
	// metricBytes is the size of the last list of metrics.
	metricBytes atomic.Int64
}

// New returns a Server.
func New(o Options) *Server {
	return &Server{Options: o, containers: preparedContainers(), sandboxes: preparedSandboxes()}
}

// Register returns a gRPC server that serves the services.
func Register(o Options) *grpc.Server {
	s := New(o)
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		// A list of a full node takes megabytes: few large writes, from memory
		// that is only held meanwhile.
		grpc.WriteBufferSize(writeBuffer), grpc.SharedWriteBuffer(true),
		grpc.ForceServerCodecV2(codec{encoding.GetCodecV2(proto.Name)}),
		grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream),
	)
	runtime.RegisterRuntimeServiceServer(g, s)
	runtime.RegisterImageServiceServer(g, s)
	berthv1.RegisterAdminServer(g, &admin{images: o.Images})
	return g
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	err = s.call(info.FullMethod, func() (err error) {
		resp, err = handle(ctx, req)
		return err
	})
	return resp, err
}

func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return s.call(info.FullMethod, func() error { return handle(srv, stream) })
}

// call runs one call: counted, logged where it fails, its panic turned into an
// error, its error into a gRPC status.
func (s *Server) call(fullMethod string, handle func() error) (err error) {
	method := path.Base(fullMethod)
	end, start := s.Metrics.BeginCall(method), time.Now()
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("panic", "call", method, "panic", p, "stack", string(debug.Stack()))
			err = status.Errorf(codes.Internal, "%s: panic: %v; see the daemon's log", method, p)
		}
		end(status.Code(err).String())
	}()
	err = toStatus(handle())
	switch status.Code(err) {
	case codes.OK, codes.Unimplemented:
	case codes.NotFound, codes.Canceled:
		s.Log.Debug("call failed", "call", method, "took", time.Since(start), "err", err)
	default:
		s.Log.Error("call failed", "call", method, "took", time.Since(start), "err", err)
	}
	return err
}

// toStatus is the one place where a kind of error becomes a gRPC code.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	}
	return errgrpc.ToGRPC(err)
}

// required says which required field of a request is missing.
func required(field, value string) error {
	if value == "" {
		return invalid(field, "it is required")
	}
	return nil
}
