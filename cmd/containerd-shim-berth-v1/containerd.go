package main

import (
	"encoding/json"
	"io"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/supervisor/wire"
)

// unknownExit is the code of a container whose own is not known.
const unknownExit = 255

// writeDeleted answers containerd when it has lost its connection to a task.
// Nothing is removed: containers outlive the supervisor and are taken up by the
// next one, and what is to go is removed by the daemon.
func writeDeleted(w io.Writer) error {
	return write(w, &taskAPI.DeleteResponse{ExitStatus: unknownExit, ExitedAt: timestamppb.Now()})
}

// featuresType is containerd's type URL for the features of an OCI runtime.
const featuresType = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

// writeInfo tells what containerd asks before it hands over mounts that map
// user IDs.
func writeInfo(w io.Writer) error {
	yes := true
	value, err := json.Marshal(features.Features{
		OCIVersionMin: "1.0.0", OCIVersionMax: "1.3.0",
		Linux: &features.Linux{MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}}},
	})
	if err != nil {
		return err
	}
	return write(w, &types.RuntimeInfo{Name: wire.RuntimeType, Features: &anypb.Any{TypeUrl: featuresType, Value: value}})
}

func write(w io.Writer, m proto.Message) error {
	data, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}
