// Package publish tells containerd what happens to a supervisor's containers,
// where it can be told. Events may be lost: whoever must know an end waits for
// it by the Task API.
//
// Invariant: Publish never waits. Concurrency: it is safe for concurrent use;
// Run is called once.
package publish

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

// A Publisher tells containerd what happens, where it can.
type Publisher struct {
	address string // containerd's ttrpc socket; empty: nobody is told
	log     *slog.Logger
	queue   chan *types.Envelope
	client  *ttrpc.Client
}

// New returns a Publisher; an empty address is nobody's.
func New(address string, log *slog.Logger) *Publisher {
	return &Publisher{address: address, log: log, queue: make(chan *types.Envelope, queued)}
}

// Publish never waits.
func (p *Publisher) Publish(namespace, topic string, event proto.Message) {
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

// Run hands on events until ctx ends.
func (p *Publisher) Run(ctx context.Context) {
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

func (p *Publisher) drop() {
	if p.client != nil {
		_ = p.client.Close() // of no more use
		p.client = nil
	}
}

func (p *Publisher) forward(ctx context.Context, e *types.Envelope) error {
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
