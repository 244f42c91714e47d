// Package loopback brings lo up as the reference plugin loopback does.
//
// Purpose: the plugin of that name in process.
//
// Invariants: no thread stays in the pod's namespace.
//
// Concurrency: no state; safe for concurrent use.
package loopback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"berth/internal/host"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const name = "lo"

// Plugin is loopback.
type Plugin struct{}

// Unsupported is always empty: the plugin has no keys of its own.
func (Plugin) Unsupported([]byte) string { return "" }

// Add brings the interface up and passes on the result before it, or makes one
// of lo's own addresses.
func (Plugin) Add(_ context.Context, args *skel.CmdArgs) (types.Result, error) {
	conf := &types.PluginConf{}
	if err := json.Unmarshal(args.StdinData, conf); err != nil {
		return nil, fmt.Errorf("failed to parse network config: %w", err)
	}
	if err := version.ParsePrevResult(conf); err != nil {
		return nil, fmt.Errorf("failed to parse prevResult: %w", err)
	}
	result := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{{Name: name, Mac: "00:00:00:00:00:00", Sandbox: args.Netns}},
	}
	err := inside(args.Netns, func(h *netlink.Handle, lo netlink.Link) error {
		if err := h.LinkSetUp(lo); err != nil {
			return err
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			addrs, err := h.AddrList(lo, family)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				if !a.IP.IsLoopback() {
					return fmt.Errorf("loopback interface found with non-loopback address %q", a.IP)
				}
			}
			if len(addrs) > 0 {
				result.IPs = append(result.IPs, &types100.IPConfig{Interface: types100.Int(0), Address: *addrs[0].IPNet})
			}
		}
		return nil
	})
	if err != nil || conf.PrevResult == nil {
		return result, err
	}
	return conf.PrevResult, nil
}

// Del takes the interface down, where there is one.
func (Plugin) Del(_ context.Context, args *skel.CmdArgs) error {
	if args.Netns == "" {
		return nil
	}
	err := inside(args.Netns, func(h *netlink.Handle, lo netlink.Link) error { return h.LinkSetDown(lo) })
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// Check tells whether the interface is up.
func (Plugin) Check(_ context.Context, args *skel.CmdArgs) error {
	return inside(args.Netns, func(_ *netlink.Handle, lo netlink.Link) error {
		if lo.Attrs().Flags&net.FlagUp == 0 {
			return errors.New("loopback interface is down")
		}
		return nil
	})
}

// Status has nothing to tell.
func (Plugin) Status(context.Context, *skel.CmdArgs) error { return nil }

// GC has nothing to do: lo goes with its namespace.
func (Plugin) GC(context.Context, *skel.CmdArgs) error { return nil }

func inside(path string, fn func(*netlink.Handle, netlink.Link) error) error {
	return host.InNetNS(path, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		lo, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		return fn(h, lo)
	})
}
