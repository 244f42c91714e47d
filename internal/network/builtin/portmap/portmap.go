// Package portmap forwards ports of the host to a container as the reference
// plugin portmap does.
//
// Purpose: the plugin of that name in process: nftables over netlink, iptables
// by one execution for each of its tables. Its rules are those that the program
// makes, and it removes those too.
//
// Invariants:
//   - The rules of one container and one family are made at once or not at all;
//     an Add that fails removes what it made.
//   - Rules are found by the container's ID, so that removing them needs no
//     address and may be repeated.
//
// Concurrency: no state; safe for concurrent use.
package portmap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"berth/internal/network/builtin/iptables"
	"berth/internal/network/builtin/nft"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

//lint:file-ignore ST1005 The errors are in the words of the reference plugins.

// undoTimeout bounds what takes back an Add that failed.
const undoTimeout = 15 * time.Second

// Plugin is portmap. Log and NFT are required.
type Plugin struct {
	Log *slog.Logger
	NFT *nft.Pool
}

// mapper makes, checks and removes rules.
type mapper interface {
	// forward makes the rules for one of the container's addresses.
	forward(ctx context.Context, c *conf, id string, to netip.Prefix) error
	// check tells whether they are there.
	check(ctx context.Context, c *conf, id string, to netip.Prefix) error
	// unforward removes the container's rules of both families. It may be
	// repeated.
	unforward(ctx context.Context, c *conf, id string) error
}

// Add forwards the ports and passes on the result before it.
func (p *Plugin) Add(ctx context.Context, args *skel.CmdArgs) (types.Result, error) {
	c, err := load(args)
	if err != nil {
		return nil, fmt.Errorf("failed to parse config: %w", err)
	}
	if c.PrevResult == nil {
		return nil, errors.New("must be called as chained plugin")
	}
	if len(c.ports) == 0 {
		return c.PrevResult, nil
	}
	m := p.backend(ctx, c, args)
	for _, addr := range c.addrs {
		if err = p.forward(ctx, m, c, args.ContainerID, addr); err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			return nil, errors.Join(err, p.unforward(ctx, c, args))
		}
	}
	return c.PrevResult, nil
}

func (p *Plugin) forward(ctx context.Context, m mapper, c *conf, id string, to netip.Prefix) error {
	if err := m.forward(ctx, c, id, to); err != nil {
		return err
	}
	var udp []uint16
	for _, port := range c.ports {
		if port.protocol == "udp" {
			udp = append(udp, port.host)
		}
	}
	if err := p.NFT.With(func(conn *nft.Conn) error { return conn.ForgetUDP(nft.Of(to.Addr()), udp) }); err != nil {
		p.Log.Warn("failed to delete stale UDP conntrack entries", "address", to.Addr(), "err", err)
	}
	if !*c.SNAT || to.Addr().Is6() {
		return nil
	}
	link, err := linkTo(to.Addr())
	if err != nil || link == "" {
		return nil // no route leads there: nothing to be allowed
	}
	// What comes from 127.0.0.1 may leave by that link.
	if err := os.WriteFile(filepath.Join("/proc/sys/net/ipv4/conf", link, "route_localnet"), []byte("1"), 0); err != nil {
		return fmt.Errorf("unable to enable route_localnet: %w", err)
	}
	return nil
}

func linkTo(addr netip.Addr) (string, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return "", err
	}
	defer h.Close()
	routes, err := h.RouteGet(addr.AsSlice())
	if err != nil {
		return "", err
	}
	for _, r := range routes {
		if link, err := h.LinkByIndex(r.LinkIndex); err == nil {
			return link.Attrs().Name, nil
		}
	}
	return "", nil
}

// Del takes the ports back.
func (p *Plugin) Del(ctx context.Context, args *skel.CmdArgs) error {
	c, err := load(args)
	if err != nil {
		return fmt.Errorf("failed to parse config: %w", err)
	}
	if len(c.ports) == 0 {
		return nil
	}
	return p.unforward(ctx, c, args)
}

// unforward removes the rules of both backends: the configuration may not
// always have named the one that it names now.
func (p *Plugin) unforward(ctx context.Context, c *conf, args *skel.CmdArgs) error {
	err := tables{programs(args), p.NFT}.unforward(ctx, c, args.ContainerID)
	if p.NFT.Supported() {
		err = errors.Join(err, nftables{p.NFT}.unforward(ctx, c, args.ContainerID))
	}
	return err
}

// programs are marked with the call that they are executed for, as plugins are.
func programs(args *skel.CmdArgs) iptables.Programs {
	return iptables.Programs{Env: []string{"CNI_CONTAINERID=" + args.ContainerID, "CNI_IFNAME=" + args.IfName}}
}

// Check tells whether the ports are forwarded.
func (p *Plugin) Check(ctx context.Context, args *skel.CmdArgs) error {
	c, err := load(args)
	if err != nil {
		return err
	}
	if c.PrevResult == nil {
		return errors.New("Required prevResult missing")
	}
	if len(c.ports) == 0 {
		return nil
	}
	m := p.backend(ctx, c, args)
	for _, addr := range c.addrs {
		if err := m.check(ctx, c, args.ContainerID, addr); err != nil {
			return err
		}
	}
	return nil
}

// Status has nothing to tell.
func (*Plugin) Status(context.Context, *skel.CmdArgs) error { return nil }

// GC has nothing to go by: the rules name a container and no network.
func (*Plugin) GC(context.Context, *skel.CmdArgs) error { return nil }
