package network

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"berth/internal/network/builtin"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
)

// pluginExec calls plugins: in process those that are there, for configurations
// that are supported, and all others as programs.
type pluginExec struct {
	programs
	inProcess *builtin.Plugins // nil: all are programs
}

var _ invoke.Exec = (*pluginExec)(nil)

// FindInPath returns the plugin's file, or its bare name where there is none
// and it may do without.
func (p *pluginExec) FindInPath(plugin string, dirs []string) (string, error) {
	path, err := p.programs.FindInPath(plugin, dirs)
	if err != nil && p.inProcess.Has(plugin) {
		return plugin, nil
	}
	return path, err
}

// ExecPlugin calls the plugin. What is answered in process cannot be killed: it
// ends at the end of ctx by itself, between two messages to the kernel.
func (p *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	kind := filepath.Base(path)
	if !p.inProcess.Answers(kind, stdin) {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("CNI plugin %q has a configuration that only the program supports, and that is not installed: install it, or change network.bin_dirs: %w",
				kind, errdefs.ErrFailedPrecondition)
		}
		return p.programs.ExecPlugin(ctx, path, stdin, environ)
	}
	call, start := callOf(path, environ), time.Now()
	out, err := p.inProcess.Call(ctx, kind, stdin, environ)
	p.log.Debug("CNI plugin ended", "plugin", call.plugin, "command", call.command, "pod", call.pod,
		"took", time.Since(start), "err", err, "in_process", true)
	if err == nil {
		return out, nil
	}
	if ctxErr := ctx.Err(); ctxErr != nil && !errors.Is(err, ctxErr) {
		err = errors.Join(err, ctxErr)
	}
	said := &types.Error{}
	errors.As(err, &said)
	return nil, fmt.Errorf("%s: %w: %w", call, err, kindOf(said))
}

func (p *pluginExec) close() error { return p.inProcess.Close() }
