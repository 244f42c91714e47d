// Command probed is what a kubelet's probes ask in its tests: for each of the
// words startup, ready and live it answers by HTTP, TCP and gRPC, well until a
// file not-WORD appears in the directory /state.
//
// It has one goroutine a server and ends with the first of them.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// Ports: HTTP and gRPC serve all words, TCP has one a word.
const (
	httpPort = ":8080"
	grpcPort = ":8081"
)

var tcpPorts = map[string]string{"startup": ":9001", "ready": ":9002", "live": ":9003"}

func main() {
	errs := make(chan error, 2+len(tcpPorts))
	go func() { errs <- serveHTTP() }()
	go func() { errs <- serveGRPC() }()
	for word, port := range tcpPorts {
		go func() { errs <- serveTCP(word, port) }()
	}
	fmt.Println("serving")
	fmt.Fprintln(os.Stderr, <-errs)
	os.Exit(1)
}

func well(word string) bool {
	_, err := os.Stat("/state/not-" + word)
	return errors.Is(err, os.ErrNotExist)
}

func serveHTTP() error {
	return http.ListenAndServe(httpPort, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !well(r.URL.Path[1:]) {
			http.Error(w, "not well", http.StatusInternalServerError)
			return
		}
		_, _ = fmt.Fprintln(w, "well") // the client may have gone
	}))
}

type server struct {
	health.UnimplementedHealthServer
}

// Check answers for the service that is named after a word.
func (server) Check(_ context.Context, req *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	if _, ok := tcpPorts[req.Service]; !ok {
		return nil, status.Errorf(codes.NotFound, "no service %q", req.Service)
	}
	if well(req.Service) {
		return &health.HealthCheckResponse{Status: health.HealthCheckResponse_SERVING}, nil
	}
	return &health.HealthCheckResponse{Status: health.HealthCheckResponse_NOT_SERVING}, nil
}

func serveGRPC() error {
	l, err := net.Listen("tcp", grpcPort)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	health.RegisterHealthServer(s, server{})
	return s.Serve(l)
}

// serveTCP listens while the word is well.
func serveTCP(word, port string) error {
	for {
		l, err := net.Listen("tcp", port)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.Close() // the probe wants no more
			}
		}()
		for well(word) {
			time.Sleep(20 * time.Millisecond)
		}
		if err := l.Close(); err != nil {
			return err
		}
		for !well(word) {
			time.Sleep(20 * time.Millisecond)
		}
	}
}
