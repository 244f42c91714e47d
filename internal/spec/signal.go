package spec

import (
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StopSignal names the signal that asks a container to stop, as signal(7)
// does: "SIGTERM", "SIGRTMIN+3". The container's own comes before the image's
// (which may be a number), SIGTERM after both.
func StopSignal(c *runtime.ContainerConfig, image *ocispec.ImageConfig) string {
	if s := c.GetStopSignal(); s != runtime.Signal_SIGNAL_RUNTIME_DEFAULT {
		name := strings.TrimPrefix(s.String(), "SIGNAL_")
		return strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name)
	}
	if image != nil && image.StopSignal != "" {
		return image.StopSignal
	}
	return "SIGTERM"
}
