package fakecri

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Version implements runtime.RuntimeServiceServer, as do the methods below.
func (s *Server) Version(context.Context, *runtime.VersionRequest) (*runtime.VersionResponse, error) {
	return &runtime.VersionResponse{Version: "0.1.0", RuntimeName: "fake", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

func (s *Server) Status(context.Context, *runtime.StatusRequest) (*runtime.StatusResponse, error) {
	return &runtime.StatusResponse{Status: &runtime.RuntimeStatus{Conditions: []*runtime.RuntimeCondition{{Type: runtime.RuntimeReady, Status: true}}}}, nil
}

func (s *Server) ListPodSandbox(context.Context, *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return proto.Clone(&runtime.ListPodSandboxResponse{Items: s.pods}).(*runtime.ListPodSandboxResponse), nil
}

func (s *Server) ListContainers(_ context.Context, req *runtime.ListContainersRequest) (*runtime.ListContainersResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &runtime.ListContainersResponse{}
	for _, c := range s.ctrs {
		if pod := req.GetFilter().GetPodSandboxId(); pod == "" || pod == c.PodSandboxId {
			resp.Containers = append(resp.Containers, c)
		}
	}
	return proto.Clone(resp).(*runtime.ListContainersResponse), nil
}

func (s *Server) RunPodSandbox(_ context.Context, req *runtime.RunPodSandboxRequest) (*runtime.RunPodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	id := fmt.Sprintf("%064x", 0xa000+s.next)
	s.config[id] = req.Config
	s.pods = append(s.pods, &runtime.PodSandbox{
		Id: id, Metadata: req.Config.Metadata, Labels: req.Config.Labels, Annotations: req.Config.Annotations, CreatedAt: time.Now().UnixNano(),
		RuntimeHandler: req.RuntimeHandler,
	})
	return &runtime.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (s *Server) PodSandboxStatus(_ context.Context, req *runtime.PodSandboxStatusRequest) (*runtime.PodSandboxStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pod(req.PodSandboxId)
	if p == nil {
		return nil, notFound("pod", req.PodSandboxId)
	}
	resp := &runtime.PodSandboxStatusResponse{Status: &runtime.PodSandboxStatus{
		Id: p.Id, Metadata: p.Metadata, State: p.State, CreatedAt: Epoch.UnixNano(), Annotations: p.Annotations,
		Network: &runtime.PodSandboxNetworkStatus{Ip: "10.0.0.2", AdditionalIps: []*runtime.PodIP{{Ip: "fd00::2"}}},
	}}
	if req.Verbose {
		resp.Info = map[string]string{"config": `{"large":9007199254740993}`, "note": "not JSON"}
	}
	return resp, nil
}

func (s *Server) StopPodSandbox(_ context.Context, req *runtime.StopPodSandboxRequest) (*runtime.StopPodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pod(req.PodSandboxId); p != nil {
		p.State = runtime.PodSandboxState_SANDBOX_NOTREADY
	}
	return &runtime.StopPodSandboxResponse{}, nil
}

func (s *Server) RemovePodSandbox(_ context.Context, req *runtime.RemovePodSandboxRequest) (*runtime.RemovePodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods = slices.DeleteFunc(s.pods, func(p *runtime.PodSandbox) bool { return p.Id == req.PodSandboxId })
	return &runtime.RemovePodSandboxResponse{}, nil
}

func (s *Server) CreateContainer(_ context.Context, req *runtime.CreateContainerRequest) (*runtime.CreateContainerResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pod(req.PodSandboxId) == nil {
		return nil, notFound("pod", req.PodSandboxId)
	}
	s.next++
	id := fmt.Sprintf("%064x", 0xc000+s.next)
	s.ctrs = append(s.ctrs, &runtime.Container{
		Id: id, PodSandboxId: req.PodSandboxId, Metadata: req.Config.Metadata, Image: req.Config.Image, Labels: req.Config.Labels,
		Annotations: req.Config.Annotations, CreatedAt: time.Now().UnixNano(),
	})
	s.statuses[id] = &runtime.ContainerStatus{
		Id: id, Metadata: req.Config.Metadata, LogPath: filepath.Join(s.config[req.PodSandboxId].GetLogDirectory(), req.Config.LogPath),
	}
	return &runtime.CreateContainerResponse{ContainerId: id}, nil
}

func (s *Server) StartContainer(_ context.Context, req *runtime.StartContainerRequest) (*runtime.StartContainerResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.statuses[req.ContainerId]
	if st == nil {
		return nil, notFound("container", req.ContainerId)
	}
	name, attempt := st.Metadata.Name, int(st.Metadata.Attempt)
	var log strings.Builder
	for line := range strings.Lines(s.Output[name]) {
		log.WriteString(Epoch.Format(time.RFC3339Nano) + " stdout F " + strings.TrimSuffix(line, "\n") + "\n")
	}
	if err := os.WriteFile(st.LogPath, []byte(log.String()), 0o600); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	st.State, st.StartedAt = runtime.ContainerState_CONTAINER_RUNNING, Epoch.UnixNano()
	s.ctr(req.ContainerId).State = st.State
	if codes := s.Exits[name]; attempt < len(codes) {
		s.exitLocked(req.ContainerId, codes[attempt])
	}
	return &runtime.StartContainerResponse{}, nil
}

func (s *Server) exitLocked(id string, code int32) {
	st := s.statuses[id]
	st.State, st.ExitCode, st.FinishedAt = runtime.ContainerState_CONTAINER_EXITED, code, Epoch.Add(time.Second).UnixNano()
	s.ctr(id).State = st.State
	for _, events := range s.events {
		events <- &runtime.ContainerEventResponse{ContainerId: id, ContainerEventType: runtime.ContainerEventType_CONTAINER_STOPPED_EVENT}
	}
}

// Exit ends a running container.
func (s *Server) Exit(id string, code int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exitLocked(id, code)
}

func (s *Server) StopContainer(_ context.Context, req *runtime.StopContainerRequest) (*runtime.StopContainerResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.ctr(req.ContainerId); c == nil {
		return nil, notFound("container", req.ContainerId)
	} else if c.State == runtime.ContainerState_CONTAINER_RUNNING {
		s.exitLocked(req.ContainerId, 143)
	}
	return &runtime.StopContainerResponse{}, nil
}

func (s *Server) RemoveContainer(_ context.Context, req *runtime.RemoveContainerRequest) (*runtime.RemoveContainerResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ctrs = slices.DeleteFunc(s.ctrs, func(c *runtime.Container) bool { return c.Id == req.ContainerId })
	delete(s.statuses, req.ContainerId)
	return &runtime.RemoveContainerResponse{}, nil
}

func (s *Server) ContainerStatus(_ context.Context, req *runtime.ContainerStatusRequest) (*runtime.ContainerStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.statuses[req.ContainerId]
	if st == nil {
		return nil, notFound("container", req.ContainerId)
	}
	return &runtime.ContainerStatusResponse{Status: proto.Clone(st).(*runtime.ContainerStatus)}, nil
}

func (s *Server) ListContainerStats(context.Context, *runtime.ListContainerStatsRequest) (*runtime.ListContainerStatsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &runtime.ListContainerStatsResponse{}
	left := uint64(5 << 20)
	if s.AtLimit {
		left = 0
	}
	for _, c := range s.ctrs {
		resp.Stats = append(resp.Stats, &runtime.ContainerStats{
			Attributes: &runtime.ContainerAttributes{Id: c.Id, Metadata: c.Metadata},
			Cpu:        &runtime.CpuUsage{Timestamp: 1, UsageNanoCores: &runtime.UInt64Value{Value: 250_000_000}},
			Memory: &runtime.MemoryUsage{
				WorkingSetBytes: &runtime.UInt64Value{Value: 3 << 20}, AvailableBytes: &runtime.UInt64Value{Value: left},
			},
			WritableLayer: &runtime.FilesystemUsage{UsedBytes: &runtime.UInt64Value{Value: 1500}},
		})
	}
	return resp, nil
}

func (s *Server) GetContainerEvents(_ *runtime.GetEventsRequest, stream runtime.RuntimeService_GetContainerEventsServer) error {
	events := make(chan *runtime.ContainerEventResponse, 1000)
	s.mu.Lock()
	s.events = append(s.events, events)
	s.mu.Unlock()
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case e := <-events:
			if err := stream.Send(e); err != nil {
				return err
			}
		}
	}
}

// Subscribers is how many follow the events.
func (s *Server) Subscribers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.events)
}

// Send sends an event to all who follow them.
func (s *Server) Send(e *runtime.ContainerEventResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, events := range s.events {
		events <- e
	}
}

func (s *Server) Exec(_ context.Context, req *runtime.ExecRequest) (*runtime.ExecResponse, error) {
	return s.streams.GetExec(req)
}

func (s *Server) Attach(_ context.Context, req *runtime.AttachRequest) (*runtime.AttachResponse, error) {
	return s.streams.GetAttach(req)
}

func (s *Server) PortForward(_ context.Context, req *runtime.PortForwardRequest) (*runtime.PortForwardResponse, error) {
	return s.streams.GetPortForward(req)
}
