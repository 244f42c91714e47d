package cri

import (
	"cmp"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/container"
	"berth/internal/record"
	"berth/internal/sandbox"
)

// listed is the number of the field that holds the entries of a list, in all
// responses that are put together from encoded entries; a test compares.
const listed = 1

// appendListed appends an encoded entry.
func appendListed(b, entry []byte) []byte {
	b = protowire.AppendVarint(protowire.AppendTag(b, listed, protowire.BytesType), uint64(len(entry)))
	return append(b, entry...)
}

// An entry is a record's message as a list sends it, made once for each
// version of the record: kubelets list everything every second, and little
// changes.
type entry[T any] struct {
	of      *T // records are immutable
	created int64
	state   int32
	wire    []byte // with tag and length
}

// prepared keeps entries of one kind of record.
type prepared[T any] struct {
	message func(*T) (m proto.Message, created int64, state int32)
	id      func(*T) string

	mu   sync.Mutex // guards what follows; not held across anything slow
	byID map[string]*entry[T]
}

// entries are those of the records, the newest first.
func (p *prepared[T]) entries(records []*T) ([]*entry[T], error) {
	list := make([]*entry[T], 0, len(records))
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range records {
		e := p.byID[p.id(r)]
		if e == nil || e.of != r {
			var err error
			if e, err = p.make(r); err != nil {
				return nil, err
			}
			if p.byID == nil {
				p.byID = map[string]*entry[T]{}
			}
			p.byID[p.id(r)] = e
		}
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b *entry[T]) int { return cmp.Compare(b.created, a.created) })
	return list, nil
}

func (p *prepared[T]) make(r *T) (*entry[T], error) {
	m, created, state := p.message(r)
	size := proto.Size(m)
	wire := make([]byte, 0, protowire.SizeTag(listed)+protowire.SizeBytes(size))
	wire = protowire.AppendVarint(protowire.AppendTag(wire, listed, protowire.BytesType), uint64(size))
	wire, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(wire, m)
	return &entry[T]{of: r, created: created, state: state, wire: wire}, err
}

// forget drops entries of what is no more. all are all the records there are.
func (p *prepared[T]) forget(all []*T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.byID) <= len(all) {
		return
	}
	left := make(map[string]*entry[T], len(all))
	for _, r := range all {
		if e := p.byID[p.id(r)]; e != nil {
			left[p.id(r)] = e
		}
	}
	p.byID = left
}

// fill makes m, a response, hold the entries: what protobuf does not know it
// sends as it is.
func fill[T any](m protoreflect.ProtoMessage, list []*entry[T]) {
	size := 0
	for _, e := range list {
		size += len(e.wire)
	}
	wire := make([]byte, 0, size)
	for _, e := range list {
		wire = append(wire, e.wire...)
	}
	m.ProtoReflect().SetUnknown(wire)
}

func preparedContainers() *prepared[record.Container] {
	return &prepared[record.Container]{
		id: func(c *record.Container) string { return c.ID },
		message: func(c *record.Container) (proto.Message, int64, int32) {
			m := container.Summary(c)
			return m, m.CreatedAt, int32(m.State)
		},
	}
}

func preparedSandboxes() *prepared[record.Sandbox] {
	return &prepared[record.Sandbox]{
		id: func(box *record.Sandbox) string { return box.ID },
		message: func(box *record.Sandbox) (proto.Message, int64, int32) {
			m := sandbox.Summary(box)
			return m, m.CreatedAt, int32(m.State)
		},
	}
}

// listContainers are the entries of the containers that a client is told of and
// the filter selects.
func (s *Server) listContainers(filter *runtime.ContainerFilter) ([]*entry[record.Container], error) {
	all := s.Store.Containers.List()
	s.containers.forget(all)
	records := slices.DeleteFunc(all, func(c *record.Container) bool {
		return !container.Shown(c) || !selected(c, filter.GetId(), filter.GetPodSandboxId(), filter.GetLabelSelector())
	})
	list, err := s.containers.entries(records)
	if state := filter.GetState(); state != nil {
		list = slices.DeleteFunc(list, func(e *entry[record.Container]) bool { return e.state != int32(state.GetState()) })
	}
	return list, err
}

// listSandboxes is listContainers for sandboxes.
func (s *Server) listSandboxes(filter *runtime.PodSandboxFilter) ([]*entry[record.Sandbox], error) {
	all := s.Store.Sandboxes.List()
	s.sandboxes.forget(all)
	records := slices.DeleteFunc(all, func(box *record.Sandbox) bool {
		return !sandbox.Shown(box) || !strings.HasPrefix(box.ID, filter.GetId()) || !matches(box.Config.GetLabels(), filter.GetLabelSelector())
	})
	list, err := s.sandboxes.entries(records)
	if state := filter.GetState(); state != nil {
		list = slices.DeleteFunc(list, func(e *entry[record.Sandbox]) bool { return e.state != int32(state.GetState()) })
	}
	return list, err
}
