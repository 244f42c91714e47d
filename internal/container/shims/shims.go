// Package shims ends what shims leave of a container: processes that name it
// on their command line, and the sockets of those that were killed.
//
// A container can have any command line, so only processes count that run in
// this one's own namespaces. End may be called for a container that nothing is
// left of, and while a shim is about to end by itself.
//
// The package has no state; its functions are safe for concurrent use.
package shims

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"berth/internal/engine"
	"berth/internal/host"
)

// End ends the shim and runtime processes started for a container, until none
// is left: one that is being started may start another.
func End(ctx context.Context, id string) error {
	ours, err := host.InOurNamespaces()
	if err != nil {
		return err
	}
	if err := awaitDelete(ctx, id, ours); err != nil {
		return err
	}
	for {
		found, err := host.FindProcesses(func(cmdline []string) bool { return names(cmdline, id) }, ours)
		if err != nil || len(found) == 0 {
			return err
		}
		for _, p := range found {
			if err := killWithSockets(ctx, p); err != nil {
				return fmt.Errorf("end process %d of container %s: %w", p.PID, id, err)
			}
		}
	}
}

// deleteTime is what a shim's "delete" has, which removes what only that shim
// knows of.
const deleteTime = 5 * time.Second

// awaitDelete waits for the "delete" that containerd executes for a shim that
// is gone.
func awaitDelete(ctx context.Context, id string, ours func(pid int) bool) error {
	found, err := host.FindProcesses(func(cmdline []string) bool {
		return names(cmdline, id) && cmdline[len(cmdline)-1] == "delete"
	}, ours)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, deleteTime)
	defer cancel()
	for _, p := range found {
		_ = p.Wait(ctx) // it is killed then
	}
	return nil
}

// killWithSockets ends a shim, which may be about to end by itself, and removes
// the socket that it then leaves.
func killWithSockets(ctx context.Context, p host.Process) error {
	sockets, err := engine.SocketsOf(p.PID)
	if err != nil {
		return err
	}
	if err := p.Signal(syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err := p.Wait(ctx); err != nil {
		return err
	}
	var errs []error
	for _, path := range sockets {
		if !shimSocket.MatchString(path) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// shimSocket is how containerd names the sockets of shims.
var shimSocket = regexp.MustCompile(`^/.*/[0-9a-f]{64}$`)

// names tells whether a command line is that of a shim or of runc for the
// container.
func names(cmdline []string, id string) bool {
	if len(cmdline) == 0 || !slices.Contains(cmdline[1:], id) {
		return false
	}
	program := filepath.Base(cmdline[0])
	return strings.HasPrefix(program, "containerd-shim-") || strings.HasPrefix(program, "runc")
}
