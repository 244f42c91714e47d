package cri

import (
	"log/slog"
	"time"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/container"
	"berth/internal/events"
	"berth/internal/record"
	"berth/internal/sandbox"
)

// GetContainerEvents implements the CRI.
func (s *Server) GetContainerEvents(_ *runtime.GetEventsRequest, stream grpc.ServerStreamingServer[runtime.ContainerEventResponse]) error {
	sub := s.Events.Subscribe()
	defer sub.Cancel()
	// The header says that what happens from now on will be told.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case event, open := <-sub.C:
			if !open {
				return sub.Err()
			}
			if err := stream.Send(event); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// A Publisher makes the events of sandboxes and containers, with the statuses
// of the moment, where somebody watches.
type Publisher struct {
	Bus   *events.Bus[*runtime.ContainerEventResponse]
	Store *record.Store
	Log   *slog.Logger
}

// Publish tells watchers what happened to a container, or to the sandbox itself
// where id is the sandbox's.
func (p *Publisher) Publish(kind runtime.ContainerEventType, id string, box *record.Sandbox) {
	if !p.Bus.Watched() {
		return
	}
	event := &runtime.ContainerEventResponse{
		ContainerId: id, ContainerEventType: kind, CreatedAt: time.Now().UnixNano(), PodSandboxStatus: sandbox.Status(box),
	}
	for _, c := range p.Store.Containers.List() {
		if c.SandboxID != box.ID || !container.Shown(c) {
			continue
		}
		status, err := container.Status(c)
		if err != nil {
			p.Log.Error("container left out of an event", "container", c.ID, "err", err)
			continue
		}
		event.ContainersStatuses = append(event.ContainersStatuses, status)
	}
	p.Bus.Publish(event)
}
