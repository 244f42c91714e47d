package cri

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// A codec is protobuf's, but sends a response that is all encoded (see fill)
// without another copy: a list of a full node takes megabytes.
type codec struct{ encoding.CodecV2 }

// Marshal implements encoding.CodecV2. What it returns may share memory with v.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(proto.Message); ok {
		if wire := encoded(m.ProtoReflect()); wire != nil {
			return mem.BufferSlice{mem.SliceBuffer(wire)}, nil
		}
	}
	return c.CodecV2.Marshal(v)
}

// encoded is the whole of a message that has nothing but encoded fields, or nil.
func encoded(m protoreflect.Message) []byte {
	wire := m.GetUnknown()
	if len(wire) == 0 {
		return nil
	}
	m.Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool {
		wire = nil
		return false
	})
	return wire
}
