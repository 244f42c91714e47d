package container

import (
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/record"
)

// Shown tells whether clients are told of the container: one that is being
// created becomes created or vanishes.
func Shown(c *record.Container) bool { return c.State != record.ContainerCreating }

func state(c *record.Container) runtime.ContainerState {
	switch c.State {
	case record.ContainerCreated:
		return runtime.ContainerState_CONTAINER_CREATED
	case record.ContainerRunning:
		return runtime.ContainerState_CONTAINER_RUNNING
	case record.ContainerExited:
		return runtime.ContainerState_CONTAINER_EXITED
	}
	return runtime.ContainerState_CONTAINER_UNKNOWN
}

// imageSpec is the image as asked for, under the name that it has.
func imageSpec(c *record.Container) *runtime.ImageSpec {
	asked := c.Config.GetImage()
	return &runtime.ImageSpec{
		Image: c.ImageName, Annotations: asked.GetAnnotations(),
		UserSpecifiedImage: asked.GetUserSpecifiedImage(), RuntimeHandler: asked.GetRuntimeHandler(),
	}
}

// Summary is the container as a list shows it.
func Summary(c *record.Container) *runtime.Container {
	return &runtime.Container{
		Id: c.ID, PodSandboxId: c.SandboxID, Metadata: c.Config.GetMetadata(),
		Image: imageSpec(c), ImageRef: c.ImageRef, ImageId: c.ImageID,
		State: state(c), CreatedAt: c.CreatedAt.UnixNano(),
		Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(),
	}
}

// Status is the container as ContainerStatus shows it.
func Status(c *record.Container) (*runtime.ContainerStatus, error) {
	resources, err := c.Resources()
	if err != nil {
		return nil, err
	}
	groups := make([]int64, len(c.Groups))
	for i, g := range c.Groups {
		groups[i] = int64(g)
	}
	return &runtime.ContainerStatus{
		Id: c.ID, Metadata: c.Config.GetMetadata(), State: state(c),
		CreatedAt: c.CreatedAt.UnixNano(), StartedAt: nanos(c.StartedAt), FinishedAt: nanos(c.FinishedAt),
		ExitCode: c.ExitCode, Reason: c.Reason, Message: c.Message,
		Image: imageSpec(c), ImageRef: c.ImageRef, ImageId: c.ImageID,
		Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(),
		Mounts: mountsOf(c), LogPath: c.LogPath,
		Resources:  &runtime.ContainerResources{Linux: resources},
		User:       &runtime.ContainerUser{Linux: &runtime.LinuxContainerUser{Uid: int64(c.UID), Gid: int64(c.GID), SupplementalGroups: groups}},
		StopSignal: criSignal(c.StopSignal),
	}, nil
}

// mountsOf are the mounts as asked for, but that images are named by their ID,
// by which a kubelet knows which are in use.
func mountsOf(c *record.Container) []*runtime.Mount {
	if len(c.ImageVolumes) == 0 {
		return c.Config.GetMounts()
	}
	mounts := slices.Clone(c.Config.GetMounts())
	for _, v := range c.ImageVolumes {
		if v.Mount < len(mounts) {
			m := proto.CloneOf(mounts[v.Mount])
			m.Image.Image, m.Image.ImageRef = v.ImageID, v.ImageRef
			mounts[v.Mount] = m
		}
	}
	return mounts
}

// nanos is 0 for a time that has not come.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// criSignal is the CRI's number of a signal as signal(7) names or numbers it.
func criSignal(name string) runtime.Signal {
	if n, err := strconv.Atoi(name); err == nil {
		name = unix.SignalName(syscall.Signal(n))
	}
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	name = strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)
	return runtime.Signal(runtime.Signal_value["SIGNAL_"+name]) // 0 is the default
}
