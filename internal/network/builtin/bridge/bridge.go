// Package bridge attaches containers to a bridge as the reference plugin bridge
// does.
//
// Purpose: the plugin of that name in process, over netlink: the same links,
// addresses, routes, sysctls and masquerade rules, so that the program can
// detach what this attached, and the other way round.
//
// Invariants:
//   - Netlink sockets are opened in the namespace that they are for. What has
//     to be done on a thread in the container's namespace goes through
//     host.InNetNS; no thread stays there.
//   - An Add that fails takes back what it did, in reverse, but for the bridge,
//     which all containers share.
//   - Del finds what there is by the container's ID and interface; it works
//     when the namespace is gone, and twice.
//
// Concurrency: safe for concurrent use, but for two calls for one container.
// What concerns the bridge alone is done by one call at a time. The lock is
// held for some netlink messages, never over a program. A Del may leave a
// goroutine behind that waits for the kernel; Close waits for those.
package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"berth/internal/network/builtin/iptables"
	"berth/internal/network/builtin/nft"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// undoTimeout bounds what takes back an Add that failed.
const undoTimeout = 15 * time.Second

// IPAM gives addresses: by a plugin in process, or by a program.
type IPAM interface {
	// Add gives addresses. Where it fails none is kept.
	Add(ctx context.Context, plugin string, args *skel.CmdArgs) (types.Result, error)
	// Del gives them back. It may be repeated.
	Del(ctx context.Context, plugin string, args *skel.CmdArgs) error
	Check(ctx context.Context, plugin string, args *skel.CmdArgs) error
	Status(ctx context.Context, plugin string, args *skel.CmdArgs) error
	GC(ctx context.Context, plugin string, args *skel.CmdArgs) error
}

// Plugin is bridge. IPAM and NFT are required.
type Plugin struct {
	IPAM IPAM
	NFT  *nft.Pool

	// mu is held while a bridge is made and given its addresses: another call
	// would see it half made.
	mu sync.Mutex

	removals removals
}

// Close waits for what the kernel still has to do.
func (p *Plugin) Close() { p.removals.wait() }

// attach is one Add under way.
type attach struct {
	*Plugin
	*conf
	args *skel.CmdArgs
	host *netlink.Handle
	pod  *netlink.Handle

	bridge      *netlink.Bridge
	port        netlink.Link // the host's end
	end         netlink.Link // the container's
	vlanGateway netlink.Link
	result      *types100.Result
	undo        []func(context.Context) error
	iptables    iptables.Programs
}

// Add attaches the container.
func (p *Plugin) Add(ctx context.Context, args *skel.CmdArgs) (result types.Result, err error) {
	c, err := load(args)
	if err == nil {
		err = c.check()
	}
	if err != nil {
		return nil, err
	}
	a := &attach{Plugin: p, conf: c, args: args, iptables: iptables.Programs{Env: environ(args)}}
	if a.host, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	defer a.host.Close()
	if a.pod, err = handleIn(args.Netns); err != nil {
		return nil, fmt.Errorf("failed to open netns %q: %w", args.Netns, err)
	}
	defer a.pod.Close()
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		for _, undo := range slices.Backward(a.undo) {
			err = errors.Join(err, undo(ctx))
		}
	}()
	for _, step := range []func(context.Context) error{a.makeBridge, a.makePair, a.giveAddresses, a.masquerade, a.settle} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	if c.hasDNS() {
		a.result.DNS = c.DNS
	}
	return a.result, nil
}

// giveAddresses asks IPAM and gives what it says to the container, and to the
// bridge where that is the gateway.
func (a *attach) giveAddresses(ctx context.Context) error {
	switch {
	case a.layer3():
	case a.DisableContainerInterface:
		return nil
	default:
		if err := a.pod.LinkSetUp(a.end); err != nil {
			return fmt.Errorf("failed to set %q up: %w", a.args.IfName, err)
		}
		return nil
	}
	given, err := a.IPAM.Add(ctx, a.IPAMType(), a.args)
	if err != nil {
		return err
	}
	a.undo = append(a.undo, func(ctx context.Context) error { return a.IPAM.Del(ctx, a.IPAMType(), a.args) })
	r, err := types100.NewResultFromResult(given)
	if err != nil {
		return err
	}
	if len(r.IPs) == 0 {
		return errors.New("IPAM plugin returned missing IP config")
	}
	a.result.IPs, a.result.Routes, a.result.DNS = r.IPs, r.Routes, r.DNS
	gateways, err := a.gateways()
	if err != nil {
		return err
	}
	if err := a.configure(ctx); err != nil {
		return err
	}
	return a.beGateway(gateways)
}

// IPAMType names the plugin that gives addresses.
func (c *conf) IPAMType() string { return c.PluginConf.IPAM.Type }

// Del detaches the container.
func (p *Plugin) Del(ctx context.Context, args *skel.CmdArgs) error {
	c, err := load(args)
	if err != nil {
		return err
	}
	if args.Netns != "" {
		if err := p.removals.remove(ctx, args.Netns, args.IfName); err != nil {
			return err
		}
	}
	if !c.layer3() {
		return nil
	}
	err = p.IPAM.Del(ctx, c.IPAMType(), args)
	if err == nil && c.IPMasq {
		err = p.unmasquerade(ctx, iptables.Programs{Env: environ(args)}, c.Name, args.IfName, args.ContainerID)
	}
	return err
}

// Status tells whether containers can be attached.
func (p *Plugin) Status(ctx context.Context, args *skel.CmdArgs) error {
	var c types.PluginConf
	if err := json.Unmarshal(args.StdinData, &c); err != nil {
		return fmt.Errorf("failed to load netconf: %w", err)
	}
	if c.IPAM.Type == "" {
		return nil
	}
	return p.IPAM.Status(ctx, c.IPAM.Type, args)
}

// GC removes the rules and gives back the addresses of what is attached no
// more. The program does neither.
func (p *Plugin) GC(ctx context.Context, args *skel.CmdArgs) error {
	c, err := load(args)
	if err != nil || !c.layer3() {
		return err
	}
	err = p.IPAM.GC(ctx, c.IPAMType(), args)
	if c.IPMasq {
		err = errors.Join(err, p.collectMasquerade(c.Name, c.ValidAttachments))
	}
	return err
}

// environ marks programs that are executed for a call, as plugins are marked.
func environ(args *skel.CmdArgs) []string {
	return []string{"CNI_CONTAINERID=" + args.ContainerID, "CNI_IFNAME=" + args.IfName}
}

func isNoLink(err error) bool { return errors.As(err, &netlink.LinkNotFoundError{}) }
