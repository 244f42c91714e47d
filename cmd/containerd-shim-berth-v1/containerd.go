package main

import "C" // deleted.c

import (
	"encoding/json"
	"io"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"berth/internal/supervisor/wire"
)

// What containerd asks when it closes its connection to a task is answered in
// deleted.c. Nothing is removed then: containers outlive the supervisor and are
// taken up by the next one, and what is to go is removed by the daemon.

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
	data, err := proto.Marshal(&types.RuntimeInfo{Name: wire.RuntimeType, Features: &anypb.Any{TypeUrl: featuresType, Value: value}})
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}
