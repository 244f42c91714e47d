package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"
)

// LogOptions say which lines of a log to show.
type LogOptions struct {
	// Tail, where not nil, is how many of the last lines.
	Tail *int64
	// Since leaves out what is older.
	Since time.Time
	// Follow goes on until the container has ended.
	Follow bool
	// Timestamps puts each line's time before it.
	Timestamps bool
}

// Logs writes the log of a container. With Follow it returns when the container
// has ended and all is written, or with ctx's error.
func (c *Client) Logs(ctx context.Context, containerID string, o LogOptions, stdout, stderr io.Writer) error {
	resp, err := c.Runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: containerID})
	if err != nil {
		return err
	}
	path := resp.GetStatus().GetLogPath()
	if path == "" {
		return fmt.Errorf("container %s keeps no log: it was created without a log path", resp.GetStatus().GetMetadata().GetName())
	}
	err = logs.ReadLogs(ctx, path, containerID, &logs.LogOptions{TailLines: o.Tail, Since: o.Since, Follow: o.Follow, Timestamp: o.Timestamps},
		statusService{client: c}, stdout, stderr)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case status.Code(err) == codes.NotFound && o.Follow:
		return nil // removed meanwhile, which ends it too
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("log of container %s: %w", resp.GetStatus().GetMetadata().GetName(), err)
	case err != nil:
		return fmt.Errorf("log of container %s: %w (is this the machine the daemon runs on, and are you root?)", resp.GetStatus().GetMetadata().GetName(), err)
	}
	return nil
}

// statusService is the one call of the CRI that following a log needs.
type statusService struct {
	internalapi.RuntimeService // nil: nothing else is called
	client                     *Client
}

// ContainerStatus implements internalapi.ContainerManager.
func (s statusService) ContainerStatus(ctx context.Context, id string, verbose bool) (*runtime.ContainerStatusResponse, error) {
	return s.client.Runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id, Verbose: verbose})
}
