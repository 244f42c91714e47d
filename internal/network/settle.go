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
	// execTakes is about how long a process takes from fork to exec.
	execTakes = 20 * time.Millisecond
	// killWait is how long a killed process may take to go.
	killWait = 5 * time.Second
)

// Settle returns when no plugin works on the container any more. A daemon that
// was killed leaves its plugins running, and one of them could make anew what
// a Del has just removed. They get some time to end, then are killed. To be
// called before Add or Del of a container that a dead daemon was at.
func (n *Network) Settle(ctx context.Context, id string) error {
	left, err := n.waitForPlugins(ctx, id, n.settleGrace, false)
	if err != nil || len(left) == 0 {
		return err
	}
	n.opts.Log.Warn("killing CNI plugins that a dead daemon left", "container", id, "processes", fmt.Sprint(left))
	left, err = n.waitForPlugins(ctx, id, killWait, true)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("CNI plugins of container %s (processes %v) do not go away though they were killed: %w", id, left, errdefs.ErrUnavailable)
	}
	return err
}

// waitForPlugins waits, for a time, until the container has no plugins, and
// returns those that are left. One that ends may have started another, which
// cannot be told while it is between fork and exec: so none are left when none
// are seen twice.
func (n *Network) waitForPlugins(ctx context.Context, id string, within time.Duration, kill bool) ([]host.Process, error) {
	limited, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for quiet := 0; ; {
		left, err := pluginsOf(id)
		if err != nil {
			return nil, err
		}
		for _, p := range left {
			if !kill {
				break
			}
			if err := p.Signal(syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
				return nil, fmt.Errorf("killing a CNI plugin of container %s: %w", id, err)
			}
		}
		if err = waitAll(limited, left); len(left) == 0 {
			if quiet++; quiet == 2 {
				return nil, nil
			}
			select {
			case <-time.After(execTakes):
			case <-limited.Done():
				err = limited.Err()
			}
		} else {
			quiet = 0
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("waiting for CNI plugins of container %s: %w", id, ctx.Err())
		}
		if err != nil {
			return left, nil
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
	ours, err := host.InOurNamespaces()
	if err != nil {
		return nil, err
	}
	return host.ProcessesWithEnv("CNI_CONTAINERID", id, ours, func(pid int) bool { return pid != os.Getpid() })
}
