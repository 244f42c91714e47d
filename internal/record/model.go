package record

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SandboxState is where a sandbox is in its life.
type SandboxState string

// The states of a sandbox. One that is being created is not shown; a stopping
// one may still hold what a stop gives back.
const (
	SandboxCreating SandboxState = "creating"
	SandboxReady    SandboxState = "ready"
	SandboxStopping SandboxState = "stopping"
	SandboxStopped  SandboxState = "stopped"
)

// A Sandbox is a pod's record.
type Sandbox struct {
	ID      string
	Config  *runtime.PodSandboxConfig `json:"-"`
	Handler string                    // resolved: never empty
	// RuntimeHandler is the handler as the client named it, often empty.
	RuntimeHandler string
	State          SandboxState
	CreatedAt      time.Time
	// CgroupParent is the cgroup of the pod's containers.
	CgroupParent string
	// OwnCgroup says that CgroupParent was not there before the pod, so that
	// it is removed with it.
	OwnCgroup bool
	// IPs are the pod's addresses, the primary first; empty on the host's network.
	IPs []string
	// Network is the name of the CNI configuration that IPs come from.
	Network string
	// Pause says that the pod has a sandbox container, made by its handler's
	// shim.
	Pause bool `json:",omitempty"`
	// Init is PID 1 of a shared PID namespace, or the sandbox container's
	// process, where the pod has one: the pod ends with it.
	Init *Process `json:",omitempty"`
}

// AnnotationUniqueName, on a sandbox's configuration, asks that no other
// sandbox has its name and namespace, whatever their UIDs. A kubelet sees to
// that itself; `berth run` cannot.
const AnnotationUniqueName = "berth.dev/unique-name"

// A Process is named by PID and start time, since PIDs are used again.
type Process struct {
	PID   int
	Start uint64
}

// ContainerState is where a container is in its life.
type ContainerState string

// The states of a container. One that is being created is not shown.
const (
	ContainerCreating ContainerState = "creating"
	ContainerCreated  ContainerState = "created"
	ContainerRunning  ContainerState = "running"
	ContainerExited   ContainerState = "exited"
)

// A Container is a container's record.
type Container struct {
	ID, SandboxID string
	Config        *runtime.ContainerConfig `json:"-"`
	Handler       string
	State         ContainerState
	// ImageID is the digest of the image's configuration, ImageRef the
	// reference by digest, ImageName what a person calls it.
	ImageID, ImageRef, ImageName string
	Snapshotter                  string
	// Cgroup is the container's own, as a path below a controller.
	Cgroup string
	// LogPath is absolute; empty: no log.
	LogPath string
	// StopSignal is what asks it to end, as signal(7) names it.
	StopSignal string
	UID, GID   uint32
	Groups     []uint32
	PID        int
	// Supervisor is the name of the supervisor that has it; empty where a
	// shim of its own does.
	Supervisor string `json:",omitempty"`

	CreatedAt, StartedAt, FinishedAt time.Time
	ExitCode                         int32
	Reason, Message                  string
	// ImageVolumes are the images that mounts of Config put into it.
	ImageVolumes []ImageVolume `json:",omitempty"`
	// InForce holds the resources in force, runtime.v1.LinuxContainerResources
	// in protobuf; nil until the container is created.
	InForce []byte `json:",omitempty"`
}

// An ImageVolume is the image of one of a container's mounts.
type ImageVolume struct {
	Mount int // index in Config.Mounts
	// ImageID is the digest of the image's configuration, ImageRef its
	// reference by digest.
	ImageID, ImageRef string
}

// Resources are those in force.
func (c *Container) Resources() (*runtime.LinuxContainerResources, error) {
	r := new(runtime.LinuxContainerResources)
	if err := proto.Unmarshal(c.InForce, r); err != nil {
		return nil, fmt.Errorf("record of container %s: resources: %w", c.ID, err)
	}
	return r, nil
}

// version begins every body, so that a field may change its meaning.
type version struct {
	V int `json:"v"`
}

const bodyVersion = 1

var sandboxCodec = codec[Sandbox]{
	kind: "sandbox",
	id:   func(s *Sandbox) string { return s.ID },
	encode: func(s *Sandbox) ([]byte, []byte, error) {
		return encode(sandboxBody{version{bodyVersion}, *s}, s.Config)
	},
	decode: func(body, config []byte) (*Sandbox, error) {
		var b sandboxBody
		cfg := new(runtime.PodSandboxConfig)
		if err := decode(body, config, &b, &b.version, cfg); err != nil {
			return nil, err
		}
		b.Config = cfg
		return &b.Sandbox, nil
	},
}

var containerCodec = codec[Container]{
	kind: "container",
	id:   func(c *Container) string { return c.ID },
	encode: func(c *Container) ([]byte, []byte, error) {
		return encode(containerBody{version{bodyVersion}, *c}, c.Config)
	},
	decode: func(body, config []byte) (*Container, error) {
		var b containerBody
		cfg := new(runtime.ContainerConfig)
		if err := decode(body, config, &b, &b.version, cfg); err != nil {
			return nil, err
		}
		b.Config = cfg
		return &b.Container, nil
	},
}

type sandboxBody struct {
	version
	Sandbox
}

type containerBody struct {
	version
	Container
}

func encode(value any, config proto.Message) (body, message []byte, err error) {
	if body, err = json.Marshal(value); err != nil {
		return nil, nil, err
	}
	message, err = proto.Marshal(config)
	return body, message, err
}

// decode reads the version first: a newer body may have other types.
func decode(body, config []byte, into any, v *version, message proto.Message) error {
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("body: %w", err)
	}
	if v.V > bodyVersion {
		return fmt.Errorf("body has version %d, which is above %d: it was written by a newer berth; install that version, or move the file away after draining the node: %w", v.V, bodyVersion, errdefs.ErrFailedPrecondition)
	}
	if v.V != bodyVersion {
		return fmt.Errorf("body has version %d, not %d", v.V, bodyVersion)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("body: %w", err)
	}
	if err := proto.Unmarshal(config, message); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	return nil
}
