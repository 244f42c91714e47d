package cri

import (
	"context"
	goruntime "runtime"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/record"
)

// maxBatch is about how many bytes of a streamed list one response has; it has
// one entry at the least.
const maxBatch = 1 << 20

// A batch collects entries of a streamed list and sends them in responses of
// maxBatch.
type batch[T any] struct {
	size func(T) int
	send func([]T) error

	list  []T
	bytes int
}

func (b *batch[T]) add(entry T) error {
	n := b.size(entry)
	if len(b.list) > 0 && b.bytes+n > maxBatch {
		if err := b.flush(); err != nil {
			return err
		}
	}
	b.list, b.bytes = append(b.list, entry), b.bytes+n
	return nil
}

// flush sends what is left. The entries are not used afterwards.
func (b *batch[T]) flush() error {
	if len(b.list) == 0 {
		return nil
	}
	err := b.send(b.list)
	b.list, b.bytes = nil, 0
	return err
}

// all sends the entries.
func (b *batch[T]) all(list []T) error {
	for _, entry := range list {
		if err := b.add(entry); err != nil {
			return err
		}
	}
	return b.flush()
}

// sideBySide reads records, as many at once as there are processors, and calls
// give for each, one after another in any order. What is not found was removed
// meanwhile and is left out; any other error ends it.
func sideBySide[R, M any](ctx context.Context, records []R, read func(context.Context, R) (M, error), give func(M) error) error {
	var next atomic.Int64
	var giving sync.Mutex // held for each call of give
	group, ctx := errgroup.WithContext(ctx)
	one := func(r R) error {
		m, err := read(ctx, r)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		giving.Lock()
		defer giving.Unlock()
		return give(m)
	}
	for range min(goruntime.GOMAXPROCS(0), len(records)) {
		group.Go(func() error {
			for i := next.Add(1) - 1; i < int64(len(records)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				if err := one(records[i]); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return group.Wait()
}

func wireSize[T any](e *entry[T]) int { return len(e.wire) }

// StreamContainers implements the CRI.
func (s *Server) StreamContainers(req *runtime.StreamContainersRequest, stream grpc.ServerStreamingServer[runtime.StreamContainersResponse]) error {
	list, err := s.listContainers(req.GetFilter())
	if err != nil {
		return err
	}
	b := batch[*entry[record.Container]]{size: wireSize[record.Container], send: func(part []*entry[record.Container]) error {
		resp := new(runtime.StreamContainersResponse)
		fill(resp, part)
		return stream.Send(resp)
	}}
	return b.all(list)
}

// StreamPodSandboxes implements the CRI.
func (s *Server) StreamPodSandboxes(req *runtime.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxesResponse]) error {
	list, err := s.listSandboxes(req.GetFilter())
	if err != nil {
		return err
	}
	b := batch[*entry[record.Sandbox]]{size: wireSize[record.Sandbox], send: func(part []*entry[record.Sandbox]) error {
		resp := new(runtime.StreamPodSandboxesResponse)
		fill(resp, part)
		return stream.Send(resp)
	}}
	return b.all(list)
}

// StreamImages implements the CRI.
func (s *Server) StreamImages(req *runtime.StreamImagesRequest, stream grpc.ServerStreamingServer[runtime.StreamImagesResponse]) error {
	resp, err := s.ListImages(stream.Context(), &runtime.ListImagesRequest{Filter: req.GetFilter()})
	if err != nil {
		return err
	}
	b := batch[*runtime.Image]{size: func(i *runtime.Image) int { return proto.Size(i) }, send: func(part []*runtime.Image) error {
		return stream.Send(&runtime.StreamImagesResponse{Images: part})
	}}
	return b.all(resp.Images)
}

// StreamContainerStats implements the CRI. What is read is sent on before all
// is.
func (s *Server) StreamContainerStats(req *runtime.StreamContainerStatsRequest, stream grpc.ServerStreamingServer[runtime.StreamContainerStatsResponse]) error {
	b := batch[*runtime.ContainerStats]{size: func(c *runtime.ContainerStats) int { return proto.Size(c) }, send: func(part []*runtime.ContainerStats) error {
		return stream.Send(&runtime.StreamContainerStatsResponse{ContainerStats: part})
	}}
	if err := s.eachContainerStats(stream.Context(), req.GetFilter(), b.add); err != nil {
		return err
	}
	return b.flush()
}

// StreamPodSandboxStats implements the CRI. What is read is sent on before all
// is.
func (s *Server) StreamPodSandboxStats(req *runtime.StreamPodSandboxStatsRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxStatsResponse]) error {
	b := batch[*runtime.PodSandboxStats]{size: func(p *runtime.PodSandboxStats) int { return proto.Size(p) }, send: func(part []*runtime.PodSandboxStats) error {
		return stream.Send(&runtime.StreamPodSandboxStatsResponse{PodSandboxStats: part})
	}}
	if err := s.eachBoxStats(stream.Context(), req.GetFilter(), b.add); err != nil {
		return err
	}
	return b.flush()
}
