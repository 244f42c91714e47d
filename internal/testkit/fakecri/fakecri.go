// Package fakecri is a CRI server in memory, for tests of what a client does
// with answers: it formats, resolves names, orders its calls, streams. It runs
// nothing; what berth itself does is tested with real containers.
//
// A Server is safe for concurrent use; its exported fields are set before the
// first call.
package fakecri

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"

	berthv1 "berth/api/berth/v1"
)

// Epoch is when everything was made.
var Epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// A Server answers calls from its fields.
type Server struct {
	runtime.UnimplementedRuntimeServiceServer
	runtime.UnimplementedImageServiceServer

	// Exits are the exit codes of a container's attempts, by its name; an
	// attempt without one runs until it is stopped.
	Exits map[string][]int32
	// Output is what a container writes to its log when it starts, by its name.
	Output map[string]string
	// Fail are errors of calls, by "Method" or "Method NAME".
	Fail map[string]error
	// Streams runs execs, attaches and port-forwards.
	Streams streaming.Runtime
	// AtLimit says that containers have no memory left.
	AtLimit bool
	// Progress is what a pull tells before its end.
	Progress []*berthv1.PullProgress

	address  string
	streams  streaming.Server
	mu       sync.Mutex // guards the rest
	calls    []string
	pods     []*runtime.PodSandbox
	config   map[string]*runtime.PodSandboxConfig
	ctrs     []*runtime.Container
	statuses map[string]*runtime.ContainerStatus
	images   []*runtime.Image
	loaded   int
	events   []chan *runtime.ContainerEventResponse
	next     int
}

// Start serves s on a socket of its own until the test ends.
func Start(t testing.TB, s *Server) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "fakecri") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s.address = filepath.Join(dir, "cri.sock")
	s.config, s.statuses = map[string]*runtime.PodSandboxConfig{}, map[string]*runtime.ContainerStatus{}
	l, err := net.Listen("unix", s.address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(s.note))
	runtime.RegisterRuntimeServiceServer(server, s)
	runtime.RegisterImageServiceServer(server, s)
	berthv1.RegisterAdminServer(server, admin{server: s})
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() {
		server.Stop()
		wg.Wait()
	})
	if s.Streams != nil {
		s.serveStreams(t)
	}
	return s
}

func (s *Server) serveStreams(t testing.TB) {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.streams.ServeHTTP(w, r) }))
	config := streaming.DefaultConfig
	config.BaseURL = &url.URL{Scheme: "http", Host: server.Listener.Addr().String()}
	var err error
	if s.streams, err = streaming.NewServer(config, s.Streams); err != nil {
		t.Fatal(err)
	}
	server.Start()
	t.Cleanup(server.Close)
}

// Address is the server's socket.
func (s *Server) Address() string { return s.address }

// Calls are the calls that changed something so far, "Method NAME" each.
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// Loaded is how many bytes of archives have come.
func (s *Server) Loaded() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loaded
}

// AddPod adds a pod, ready or not, with the ID.
func (s *Server) AddPod(id, namespace, name string, ready bool, age time.Duration) *runtime.PodSandbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &runtime.PodSandbox{
		Id: id, Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: namespace, Uid: "uid-" + name},
		CreatedAt: time.Now().Add(-age).UnixNano(),
	}
	if !ready {
		p.State = runtime.PodSandboxState_SANDBOX_NOTREADY
	}
	s.pods = append(s.pods, p)
	return p
}

// AddContainer adds a container in a state, with the ID.
func (s *Server) AddContainer(id, pod, name string, state runtime.ContainerState, logPath string) *runtime.Container {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &runtime.Container{
		Id: id, PodSandboxId: pod, Metadata: &runtime.ContainerMetadata{Name: name}, State: state,
		Image: &runtime.ImageSpec{Image: "sha256:1234567890abcdef", UserSpecifiedImage: "app:1"}, CreatedAt: time.Now().Add(-time.Minute).UnixNano(),
	}
	s.ctrs = append(s.ctrs, c)
	s.statuses[id] = &runtime.ContainerStatus{Id: id, Metadata: c.Metadata, State: state, LogPath: logPath}
	return c
}

// AddImage adds an image.
func (s *Server) AddImage(img *runtime.Image) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images = append(s.images, img)
}

// note keeps the calls that change something.
func (s *Server) note(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	method := filepath.Base(info.FullMethod)
	name := s.nameIn(req)
	if name != "" {
		s.mu.Lock()
		s.calls = append(s.calls, method+" "+name)
		s.mu.Unlock()
	}
	for _, key := range []string{method, method + " " + name} {
		if err := s.Fail[key]; err != nil {
			return nil, err
		}
	}
	return handle(ctx, req)
}

// nameIn is what a request changes, by its name.
func (s *Server) nameIn(req any) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r := req.(type) {
	case *runtime.RunPodSandboxRequest:
		return r.GetConfig().GetMetadata().GetName()
	case *runtime.StopPodSandboxRequest:
		return s.pod(r.PodSandboxId).GetMetadata().GetName()
	case *runtime.RemovePodSandboxRequest:
		return s.pod(r.PodSandboxId).GetMetadata().GetName()
	case *runtime.CreateContainerRequest:
		return r.GetConfig().GetMetadata().GetName()
	case *runtime.StartContainerRequest:
		return s.ctr(r.ContainerId).GetMetadata().GetName()
	case *runtime.StopContainerRequest:
		return fmt.Sprintf("%s %ds", s.ctr(r.ContainerId).GetMetadata().GetName(), r.Timeout)
	case *runtime.RemoveContainerRequest:
		return s.ctr(r.ContainerId).GetMetadata().GetName()
	case *runtime.PullImageRequest:
		return r.GetImage().GetImage()
	case *runtime.RemoveImageRequest:
		return r.GetImage().GetImage()
	}
	return ""
}

func (s *Server) pod(id string) *runtime.PodSandbox {
	for _, p := range s.pods {
		if p.Id == id {
			return p
		}
	}
	return nil
}

func (s *Server) ctr(id string) *runtime.Container {
	for _, c := range s.ctrs {
		if c.Id == id {
			return c
		}
	}
	return nil
}

func notFound(kind, id string) error {
	return status.Errorf(codes.NotFound, "%s %s: not found", kind, id)
}
