package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

//lint:file-ignore ST1005 The errors are in the words of the reference plugins.

// Check tells whether the network is still what the result of the Add says.
func (p *Plugin) Check(ctx context.Context, args *skel.CmdArgs) error {
	c, err := load(args)
	if err != nil {
		return err
	}
	pod, err := handleIn(args.Netns)
	if err != nil {
		return fmt.Errorf("failed to open netns %q: %w", args.Netns, err)
	}
	defer pod.Close()
	if c.layer3() {
		if err := p.IPAM.Check(ctx, c.IPAMType(), args); err != nil {
			return err
		}
	}
	if c.RawPrevResult == nil {
		return errors.New("Required prevResult missing")
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return err
	}
	result, err := types100.NewResultFromResult(c.PrevResult)
	if err != nil {
		return err
	}
	own, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	defer own.Close()
	if err := checkLinks(c, args, own, pod, result.Interfaces); err != nil {
		return err
	}
	if err := checkAddresses(pod, args.IfName, result.IPs); err != nil {
		return err
	}
	return checkRoutes(pod, result.Routes)
}

// checkLinks looks for the bridge, the container's interface, and the port
// that connects them.
func checkLinks(c *conf, args *skel.CmdArgs, own, pod *netlink.Handle, told []*types100.Interface) error {
	var bridge, inside types100.Interface
	for _, i := range told {
		switch {
		case i.Name == c.Bridge:
			bridge = *i
		case i.Name == args.IfName && i.Sandbox == args.Netns:
			inside = *i
		}
	}
	br, err := checkBridge(c, own, bridge)
	if err != nil {
		return err
	}
	if args.Netns != inside.Sandbox {
		return fmt.Errorf("Sandbox in prevResult %s doesn't match configured netns: %s", inside.Sandbox, args.Netns)
	}
	end, err := findTold(pod, inside)
	if err != nil {
		return err
	}
	if end.Type() != "veth" {
		return fmt.Errorf("Error: Container interface %s not of type veth", inside.Name)
	}
	if mac := end.Attrs().HardwareAddr.String(); inside.Mac != "" && inside.Mac != mac {
		return fmt.Errorf("Interface %s Mac %s doesn't match container Mac: %s", inside.Name, inside.Mac, mac)
	}
	for _, i := range told {
		if i.Name == bridge.Name || i.Name == inside.Name {
			continue
		}
		if i.Sandbox != "" {
			return fmt.Errorf("Interface %s should not be in sandbox", i.Name)
		}
		port, err := findTold(own, *i)
		if err != nil {
			return err
		}
		if port.Type() != "veth" || port.Attrs().ParentIndex != end.Attrs().Index || end.Attrs().ParentIndex != port.Attrs().Index ||
			port.Attrs().MasterIndex != br.Index {
			continue
		}
		if i.Mac != "" && i.Mac != port.Attrs().HardwareAddr.String() {
			return fmt.Errorf("Interface %s Mac doesn't match: %s not found", i.Name, i.Mac)
		}
		return nil
	}
	return fmt.Errorf("CNI veth created for bridge %s was not found", c.Bridge)
}

func findTold(h *netlink.Handle, told types100.Interface) (netlink.Link, error) {
	if told.Name == "" {
		return nil, errors.New("Interface name missing ")
	}
	link, err := h.LinkByName(told.Name)
	if err != nil {
		return nil, fmt.Errorf("Interface name %s not found", told.Name)
	}
	return link, nil
}

func checkBridge(c *conf, own *netlink.Handle, told types100.Interface) (*netlink.Bridge, error) {
	link, err := findTold(own, told)
	if err != nil {
		return nil, err
	}
	br, ok := link.(*netlink.Bridge)
	promisc := link.Attrs().Promisc != 0
	switch mac := link.Attrs().HardwareAddr.String(); {
	case told.Sandbox != "":
		return nil, fmt.Errorf("Interface %s should not be in sandbox", told.Name)
	case !ok:
		return nil, fmt.Errorf("Interface %s does not have link type of bridge", told.Name)
	case told.Mac != "" && told.Mac != mac:
		return nil, fmt.Errorf("Bridge interface %s Mac doesn't match: %s", told.Name, told.Mac)
	case promisc != c.PromiscMode:
		return nil, fmt.Errorf("Bridge interface %s configured Promisc Mode %v doesn't match current state: %v ", told.Name, c.PromiscMode, promisc)
	}
	return br, nil
}

func checkAddresses(pod *netlink.Handle, name string, told []*types100.IPConfig) error {
	link, err := pod.LinkByName(name)
	if err != nil {
		return fmt.Errorf("Cannot find container link %v", name)
	}
	have, err := again(func() ([]netlink.Addr, error) { return pod.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("Cannot obtain List of IP Addresses: %w", err)
	}
	for _, ip := range told {
		want := netlink.Addr{IPNet: &ip.Address}
		found := false
		for _, a := range have {
			found = found || a.Equal(want)
		}
		if !found {
			return fmt.Errorf("Failed to match addr %v on interface %v", want, name)
		}
		network := net.IPNet{IP: ip.Address.IP.Mask(ip.Address.Mask), Mask: ip.Address.Mask}
		routes, err := routesTo(pod, network, nil)
		if err != nil {
			return fmt.Errorf("Error %w trying to find Gateway %v for interface %v", err, ip.Gateway, name)
		}
		if len(routes) == 0 {
			return fmt.Errorf("Failed to find Gateway %v for interface %v", ip.Gateway, name)
		}
	}
	return nil
}

func checkRoutes(pod *netlink.Handle, told []*types.Route) error {
	for _, r := range told {
		routes, err := routesTo(pod, r.Dst, r.GW)
		if err != nil {
			return fmt.Errorf("Expected Route %v not route table lookup error %w", r, err)
		}
		if len(routes) == 0 {
			return fmt.Errorf("Expected Route %v not found in routing table", r)
		}
	}
	return nil
}

// routesTo lists the routes to a network, through gw where it is not nil. Of a
// default route the gateway does not count, as with the reference.
func routesTo(pod *netlink.Handle, to net.IPNet, gw net.IP) ([]netlink.Route, error) {
	family := netlink.FAMILY_V4
	if to.IP.To4() == nil {
		family = netlink.FAMILY_V6
	}
	filter, mask := &netlink.Route{Dst: &to, Gw: gw}, netlink.RT_FILTER_DST
	if gw != nil {
		mask |= netlink.RT_FILTER_GW
	}
	if ones, _ := to.Mask.Size(); ones == 0 && to.IP.IsUnspecified() {
		filter, mask = &netlink.Route{Gw: gw}, netlink.RT_FILTER_DST
	}
	return again(func() ([]netlink.Route, error) { return pod.RouteListFiltered(family, filter, mask) })
}
