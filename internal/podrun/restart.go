package podrun

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/manifest"
)

// Between restarts of a container that fails again and again: none before the
// first, then twice as long each time. One that ran for resetBackoff has
// recovered.
const (
	firstBackoff = time.Second
	maxBackoff   = time.Minute
	resetBackoff = 10 * time.Minute
)

// untilDone waits for the container's end and restarts it as the policy says,
// until it has ended for good.
func (r *Run) untilDone(ctx context.Context, c *manifest.Container, id string, policy corev1.RestartPolicy) outcome {
	var (
		backoff  time.Duration
		previous string
	)
	for attempt := uint32(0); ; attempt++ {
		ended, err := r.waitExit(ctx, id)
		if err != nil {
			return outcome{err: err}
		}
		code := ended.ExitCode
		if policy == corev1.RestartPolicyNever || policy == corev1.RestartPolicyOnFailure && code == 0 {
			return outcome{code: code}
		}
		if ready, err := r.ready(ctx); err != nil || !ready {
			return outcome{code: code, err: err} // somebody stopped the pod
		}
		if time.Duration(ended.FinishedAt-ended.StartedAt) > resetBackoff {
			backoff = 0
		}
		r.opts.Say("container %s ended with exit code %d%s: restart %d%s", c.Name, code, reason(ended), attempt+1, in(backoff))
		if err := pause(ctx, backoff); err != nil {
			return outcome{err: err}
		}
		backoff = min(max(2*backoff, firstBackoff), maxBackoff)
		if previous != "" {
			if err := r.forget(ctx, c, previous, attempt-1); err != nil {
				return outcome{err: err}
			}
		}
		previous = id
		if id, err = r.start(ctx, c, attempt+1); err != nil {
			return outcome{err: err}
		}
	}
}

// ready tells whether the sandbox can still take a container.
func (r *Run) ready(ctx context.Context) (bool, error) {
	resp, err := r.client.Runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: r.sandbox})
	if status.Code(err) == codes.NotFound {
		return false, nil
	}
	return resp.GetStatus().GetState() == runtime.PodSandboxState_SANDBOX_READY, err
}

func reason(s *runtime.ContainerStatus) string {
	if s.Reason == "" || s.Reason == "Error" || s.Reason == "Completed" {
		return ""
	}
	return " (" + s.Reason + ")"
}

func in(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return " in " + d.String()
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// forget removes an old attempt and its log, so that a container that fails
// again and again does not pile up.
func (r *Run) forget(ctx context.Context, c *manifest.Container, id string, attempt uint32) error {
	if _, err := r.client.Runtime.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: id}); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(r.plan.LogDir, manifest.LogPath(c.Name, attempt)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// waitExit waits until the container has ended. A daemon that is restarted
// meanwhile is waited for.
func (r *Run) waitExit(ctx context.Context, id string) (*runtime.ContainerStatus, error) {
	for {
		changed := r.watch.changed()
		resp, err := r.client.Runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id})
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case status.Code(err) == codes.Unavailable:
		case err != nil:
			return nil, err
		case resp.GetStatus().GetState() == runtime.ContainerState_CONTAINER_EXITED:
			return resp.Status, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}

// maxTail bounds what is read of a log for an error.
const maxTail = 64 << 10

// lastLines is the end of a container's last log, for an error.
func (r *Run) lastLines(c *manifest.Container) string {
	const most = 5
	path, err := lastLog(filepath.Join(r.plan.LogDir, c.Name))
	if err != nil {
		return fmt.Sprintf("  (%v)", err)
	}
	if path == "" {
		return "  (empty)"
	}
	text, err := tail(path)
	if err != nil {
		return fmt.Sprintf("  (%v)", err)
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	var b bytes.Buffer
	for _, line := range lines[max(0, len(lines)-most):] {
		// Without time, stream and tag.
		if parts := bytes.SplitN(line, []byte(" "), 4); len(parts) == 4 {
			line = parts[3]
		}
		b.WriteString("  " + string(line) + "\n")
	}
	return string(bytes.TrimRight(b.Bytes(), "\n"))
}

// lastLog is the log of the last attempt, "" where there is none.
func lastLog(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	last, found := uint64(0), ""
	for _, e := range entries {
		attempt, isLog := strings.CutSuffix(e.Name(), ".log")
		n, err := strconv.ParseUint(attempt, 10, 32)
		if isLog && err == nil && (found == "" || n > last) {
			last, found = n, filepath.Join(dir, e.Name())
		}
	}
	return found, nil
}

// tail is the end of a file.
func tail(path string) (_ []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(f, max(0, st.Size()-maxTail), maxTail))
}
