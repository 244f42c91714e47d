package daemon

import (
	"cmp"
	"fmt"

	"github.com/containerd/errdefs"

	"berth/internal/config"
)

// noUserNamespaces says why pods of a handler, "" being the default one, cannot
// have user namespaces; nil: they can. Which shims other than runc's know them,
// berth does not know.
func (p *parts) noUserNamespaces(handler string) error {
	handler = cmp.Or(handler, p.Config.Runtime.DefaultHandler)
	switch h := p.Config.Runtime.Handlers[handler]; {
	case h.Type != config.SupervisorType && h.Type != config.RuncType, h.WantsPause():
		return fmt.Errorf("the runtime handler %s is not known to make them; berth and runc do: %w", handler, errdefs.ErrFailedPrecondition)
	case !p.kernel.UserNamespaces:
		return fmt.Errorf("the kernel has none, or allows none by the sysctl user.max_user_namespaces: %w", errdefs.ErrFailedPrecondition)
	case !p.mapsIDs:
		return fmt.Errorf("the snapshotter %s does not map IDs here; overlayfs does, from Linux 5.19 on: %w", p.Config.Containerd.Snapshotter, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (p *parts) userNamespaces(handler string) bool { return p.noUserNamespaces(handler) == nil }
