package network

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"berth/internal/host"

	"github.com/containerd/errdefs"
)

const (
	// settleGrace is how long a plugin of a dead daemon may still take. Most
	// end within a tenth of a second.
	settleGrace = 5 * time.Second
	// killWait is how long a killed process may take to go.
	killWait = 5 * time.Second
)

// Settle returns when no plugin works on the container any more. A daemon that
// was killed leaves its plugins running, and one of them could make anew what
// a Del has just removed. They get some time to end, then are killed. To be
// called before Add or Del of a container that a dead daemon was at.
func (n *Network) Settle(ctx context.Context, id string) error {
	grace, cancel := context.WithTimeout(ctx, n.settleGrace)
	defer cancel()
	for kill := false; ; {
		left, err := pluginsOf(id)
		if err != nil || len(left) == 0 {
			return err
		}
		err = waitAll(grace, left)
		switch {
		case err == nil: // one that ended may have started another: look again
		case ctx.Err() != nil:
			return fmt.Errorf("waiting for CNI plugins of container %s: %w", id, ctx.Err())
		case kill:
			return fmt.Errorf("CNI plugins of container %s (processes %v) do not go away though they were killed: %w", id, left, errdefs.ErrUnavailable)
		default:
			n.opts.Log.Warn("killing CNI plugins that a dead daemon left", "container", id, "processes", fmt.Sprint(left))
			for _, p := range left {
				if err := p.Signal(syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
					return fmt.Errorf("killing a CNI plugin of container %s: %w", id, err)
				}
			}
			kill = true
			cancel()
			grace, cancel = context.WithTimeout(ctx, killWait)
			defer cancel()
		}
	}
}

func waitAll(ctx context.Context, ps []host.Process) error {
	for _, p := range ps {
		if err := p.Wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// pluginsOf finds the container's plugins by the environment that CNI gives
// them. A pod's own processes do not count, whatever their environment says.
func pluginsOf(id string) ([]host.Process, error) {
	all, err := host.ProcessesWithEnv("CNI_CONTAINERID", id)
	if err != nil {
		return nil, err
	}
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil, err
	}
	var plugins []host.Process
	for _, p := range all {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p.PID))
		if err == nil && ns == own && p.PID != os.Getpid() {
			plugins = append(plugins, p)
		}
	}
	return plugins, nil
}
