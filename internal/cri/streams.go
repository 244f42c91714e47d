package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/record"
)

// ExecSync implements the CRI.
func (s *Server) ExecSync(ctx context.Context, req *runtime.ExecSyncRequest) (*runtime.ExecSyncResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if len(req.GetCmd()) == 0 {
		return nil, invalid("cmd", "it is required: name the command to execute")
	}
	if req.GetTimeout() < 0 {
		return nil, invalid("timeout", "%d: it is a number of seconds, 0 for none", req.GetTimeout())
	}
	stdout, stderr, code, err := s.Containers.ExecSync(ctx, req.GetContainerId(), req.GetCmd(), seconds(req.GetTimeout()))
	if err != nil {
		return nil, err
	}
	return &runtime.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(code)}, nil
}

// running resolves a container that streams may be made to.
func (s *Server) running(id string) (*record.Container, error) {
	c, err := s.container(id)
	if err == nil && c.State != record.ContainerRunning {
		err = fmt.Errorf("container %s is %s, not running: %w", c.ID, c.State, errdefs.ErrFailedPrecondition)
	}
	return c, err
}

// Exec implements the CRI.
func (s *Server) Exec(_ context.Context, req *runtime.ExecRequest) (*runtime.ExecResponse, error) {
	c, err := s.running(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if len(req.GetCmd()) == 0 {
		return nil, invalid("cmd", "it is required: name the command to execute")
	}
	if err := validateStreams(req.GetStdin(), req.GetStdout(), req.GetStderr(), req.GetTty()); err != nil {
		return nil, err
	}
	return s.Streams.Exec(&runtime.ExecRequest{
		ContainerId: c.ID, Cmd: req.GetCmd(), Tty: req.GetTty(), Stdin: req.GetStdin(), Stdout: req.GetStdout(), Stderr: req.GetStderr(),
	})
}

// validateStreams: a terminal has no separate stderr.
func validateStreams(stdin, stdout, stderr, tty bool) error {
	if tty && stderr {
		return invalid("stderr", "true: with tty there is no separate stderr; leave it false")
	}
	if !stdin && !stdout && !stderr {
		return invalid("stdin, stdout, stderr", "all are false: ask for at least one")
	}
	return nil
}

// Attach implements the CRI.
func (s *Server) Attach(_ context.Context, req *runtime.AttachRequest) (*runtime.AttachResponse, error) {
	c, err := s.running(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := validateStreams(req.GetStdin(), req.GetStdout(), req.GetStderr(), req.GetTty()); err != nil {
		return nil, err
	}
	return s.Streams.Attach(&runtime.AttachRequest{
		ContainerId: c.ID, Tty: c.Config.GetTty(), Stdin: req.GetStdin(), Stdout: req.GetStdout(), Stderr: req.GetStderr() && !c.Config.GetTty(),
	})
}

// PortForward implements the CRI.
func (s *Server) PortForward(_ context.Context, req *runtime.PortForwardRequest) (*runtime.PortForwardResponse, error) {
	box, err := s.box(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if box.State != record.SandboxReady {
		return nil, fmt.Errorf("sandbox %s is %s, not ready: %w", box.ID, box.State, errdefs.ErrFailedPrecondition)
	}
	return s.Streams.PortForward(&runtime.PortForwardRequest{PodSandboxId: box.ID, Port: req.GetPort()})
}
