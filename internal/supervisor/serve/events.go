package serve

import (
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// queued is how many events wait for containerd; more are lost, which is
	// allowed: whoever must know waits by the Task API.
	queued = 512
	// publishTimeout bounds one event.
	publishTimeout = 2 * time.Second
)

// A publisher tells containerd what happens, where it can.
type publisher struct {
	address string // containerd's ttrpc socket; empty: nobody is told
	log     *slog.Logger
	queue   chan *types.Envelope
	client  *ttrpc.Client
}

func newPublisher(address string, log *slog.Logger) *publisher {
	return &publisher{address: address, log: log, queue: make(chan *types.Envelope, queued)}
}

// publish never waits.
func (p *publisher) publish(namespace, topic string, event proto.Message) {
	if p.address == "" {
		return
	}
	body, err := proto.Marshal(event)
	if err != nil {
		p.log.Error("event not encoded", "topic", topic, "err", err)
		return
	}
	e := &types.Envelope{
		Timestamp: timestamppb.Now(), Namespace: namespace, Topic: topic,
		// containerd's type URLs are bare names.
		Event: &anypb.Any{TypeUrl: string(event.ProtoReflect().Descriptor().FullName()), Value: body},
	}
	select {
	case p.queue <- e:
	default:
		p.log.Debug("event lost: containerd takes none", "topic", topic)
	}
}

// run hands on events until ctx ends.
func (p *publisher) run(ctx context.Context) {
	defer p.drop()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-p.queue:
			// An old connection may be of a containerd that has ended.
			if err := p.forward(ctx, e); err != nil {
				p.drop()
				if err = p.forward(ctx, e); err != nil {
					p.drop()
					p.log.Debug("event lost", "topic", e.Topic, "err", err)
				}
			}
		}
	}
}

func (p *publisher) drop() {
	if p.client != nil {
		_ = p.client.Close() // of no more use
		p.client = nil
	}
}

func (p *publisher) forward(ctx context.Context, e *types.Envelope) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	if p.client == nil {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", p.address)
		if err != nil {
			return err
		}
		p.client = ttrpc.NewClient(conn)
	}
	_, err := events.NewTTRPCEventsClient(p.client).Forward(ctx, &events.ForwardRequest{Envelope: e})
	return err
}
