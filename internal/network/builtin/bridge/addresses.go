package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"berth/internal/host"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

//lint:file-ignore ST1005 The errors are in the words of the reference plugins.

const (
	// dadTimeout bounds the wait for the check of an IPv6 address for others
	// that have it (DAD). It takes the kernel a second where it is on; where it
	// is off, the address is usable once the kernel has come to it.
	dadTimeout = 5 * time.Second
	// portTimeout bounds the wait for the bridge's port. The kernel tells its
	// state some time after the link has a carrier.
	portTimeout = 2550 * time.Millisecond
	// firstDelay is between the first two looks; each one after it is twice as
	// long, up to lastDelay.
	firstDelay = 200 * time.Microsecond
	lastDelay  = 20 * time.Millisecond
)

// gateways completes the addresses with gateways and routes, and returns the
// addresses that the bridge is to have.
func (a *attach) gateways() ([]net.IPNet, error) {
	var gateways []net.IPNet
	done := map[bool]bool{} // by IPv6
	for _, ip := range a.result.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		bits, _ := ip.Address.Mask.Size()
		if !ok {
			return nil, fmt.Errorf("Unknown IP object: %v", ip)
		}
		addr = addr.Unmap()
		ip.Interface = types100.Int(2)
		if ip.Gateway == nil && a.IsGateway {
			ip.Gateway = nextAddr(netip.PrefixFrom(addr, bits)).AsSlice()
		}
		if a.IsDefaultGateway && !done[addr.Is6()] {
			done[addr.Is6()] = true
			a.addDefaultRoute(addr, ip.Gateway)
		}
		if a.IsGateway {
			gateways = append(gateways, net.IPNet{IP: ip.Gateway, Mask: ip.Address.Mask})
		}
	}
	return gateways, nil
}

// addDefaultRoute adds one through the gateway unless IPAM gave one that names
// its gateway.
func (a *attach) addDefaultRoute(of netip.Addr, gateway net.IP) {
	all := net.IPNet{IP: net.IPv4zero, Mask: net.IPMask(net.IPv4zero)}
	if of.Is6() {
		all = net.IPNet{IP: net.IPv6zero, Mask: net.IPMask(net.IPv6zero)}
	}
	for _, r := range a.result.Routes {
		if r.GW != nil && r.Dst.String() == all.String() {
			return
		}
	}
	a.result.Routes = append(a.result.Routes, &types.Route{Dst: all, GW: gateway})
}

// configure gives the container's interface its addresses and routes.
func (a *attach) configure(ctx context.Context) error {
	v6 := false
	for _, ip := range a.result.IPs {
		v6 = v6 || ip.Address.IP.To4() == nil
	}
	if err := host.InNetNS(a.args.Netns, func() error { return a.sysctls(v6) }); err != nil {
		return err
	}
	var gateway4, gateway6 net.IP
	for _, ip := range a.result.IPs {
		if err := a.pod.AddrAdd(a.end, &netlink.Addr{IPNet: &ip.Address}); err != nil {
			return fmt.Errorf("failed to add IP addr %v to %q: %w", ip, a.args.IfName, err)
		}
		if is4 := ip.Gateway.To4() != nil; is4 && gateway4 == nil {
			gateway4 = ip.Gateway
		} else if !is4 && gateway6 == nil {
			gateway6 = ip.Gateway
		}
	}
	if err := a.pod.LinkSetUp(a.end); err != nil {
		return fmt.Errorf("failed to set %q UP: %w", a.args.IfName, err)
	}
	if gateway6 != nil {
		// A route's source would be an address that is not usable yet.
		if err := a.settleAddresses(ctx); err != nil {
			return fmt.Errorf("failed to settle addresses for %q: %w", a.args.IfName, err)
		}
	}
	for _, r := range a.result.Routes {
		if err := a.addRoute(r, gateway4, gateway6); err != nil {
			return err
		}
	}
	return nil
}

// sysctls sets those of the container's interface. It runs on a thread in the
// container's namespace. Where the kernel has no IPv6 there are no files for
// it, which is an error only when an IPv6 address is to be given.
func (a *attach) sysctls(v6 bool) error {
	name := a.args.IfName
	dad := "0"
	if a.EnableDAD {
		dad = "1"
		_ = sysctl("1", "ipv6/conf", name, "enhanced_dad")
	}
	_ = sysctl(dad, "ipv6/conf", name, "accept_dad")
	_ = sysctl("1", "ipv4/conf", name, "arp_notify")
	if !v6 {
		return nil
	}
	for _, link := range []string{"lo", name} {
		off, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + link + "/disable_ipv6")
		if err != nil || string(off) == "0\n" {
			continue
		}
		if err := sysctl("0", "ipv6/conf", link, "disable_ipv6"); err != nil {
			return fmt.Errorf("failed to enable IPv6 for interface %q: %w", link, err)
		}
	}
	if err := sysctl("1", "ipv6/conf", name, "keep_addr_on_down"); err != nil {
		return fmt.Errorf("failed to enable keep_addr_on_down for interface %q: %w", name, err)
	}
	return nil
}

func (a *attach) addRoute(r *types.Route, gateway4, gateway6 net.IP) error {
	gateway := r.GW
	if is4 := r.Dst.IP.To4() != nil; gateway == nil && is4 {
		gateway = gateway4
	} else if gateway == nil {
		gateway = gateway6
	}
	route := netlink.Route{Dst: &r.Dst, LinkIndex: a.end.Attrs().Index, Gw: gateway, Priority: r.Priority}
	if r.Table != nil {
		route.Table = *r.Table
	}
	if r.Scope != nil {
		route.Scope = netlink.Scope(*r.Scope)
	}
	if err := a.pod.RouteAddEcmp(&route); err != nil {
		return fmt.Errorf("failed to add route '%v via %v dev %v metric %d (Scope: %v, Table: %d)': %w",
			r.Dst.String(), gateway, a.args.IfName, r.Priority, route.Scope, route.Table, err)
	}
	return nil
}

// wait looks until done says so, at first often.
func wait(ctx context.Context, limit time.Duration, done func() (bool, error)) (in bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for delay := firstDelay; ; delay = min(2*delay, lastDelay) {
		if ok, err := done(); ok || err != nil {
			return ok, err
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return done()
		}
	}
}

// settleAddresses waits until the container's IPv6 addresses are usable.
func (a *attach) settleAddresses(ctx context.Context) error {
	name := a.args.IfName
	ok, err := wait(ctx, dadTimeout, func() (bool, error) {
		addrs, err := again(func() ([]netlink.Addr, error) { return a.pod.AddrList(a.end, netlink.FAMILY_V6) })
		if err != nil {
			return false, fmt.Errorf("could not list addresses: %w", err)
		}
		if bad, is := hasFlag(addrs, failed); is {
			return false, fmt.Errorf("link %s has address %s in DADFAILED state", name, bad.IP)
		}
		_, is := hasFlag(addrs, tentative)
		return !is, nil
	})
	if err != nil || ok {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	link, err := a.pod.LinkByName(name)
	if err != nil {
		return fmt.Errorf("failed to retrieve link: %w", err)
	}
	if link.Attrs().OperState == netlink.OperUp {
		return fmt.Errorf("link %s still has tentative addresses after %s", name, dadTimeout)
	}
	return nil // the link is not up: the kernel will check when it is
}

// beGateway gives the bridge, or its interface in the VLAN, the addresses, and
// has the kernel forward.
func (a *attach) beGateway(gateways []net.IPNet) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	forward := map[bool]bool{} // by IPv6
	for _, gw := range gateways {
		var on netlink.Link = a.bridge
		if a.VLAN != 0 {
			link, err := a.vlanLinkLocked()
			if err != nil {
				return fmt.Errorf("failed to create vlan interface: %w", err)
			}
			if a.vlanGateway == nil {
				a.vlanGateway = link
				a.result.Interfaces = append(a.result.Interfaces, &types100.Interface{Name: link.Attrs().Name, Mac: link.Attrs().HardwareAddr.String()})
			}
			on = link
		}
		if err := a.ensureAddrLocked(on, gw); err != nil {
			if a.VLAN != 0 {
				return fmt.Errorf("failed to set vlan interface for bridge with addr: %w", err)
			}
			return fmt.Errorf("failed to set bridge addr: %w", err)
		}
		forward[gw.IP.To4() == nil] = true
	}
	for v6 := range forward {
		if err := enableForwarding(v6); err != nil {
			return fmt.Errorf("failed to enable forwarding: %w", err)
		}
	}
	return nil
}

// ensureAddrLocked gives a link an address. A link has one IPv4 address, and
// IPv6 addresses of networks apart.
func (a *attach) ensureAddrLocked(link netlink.Link, want net.IPNet) error {
	family, name := netlink.FAMILY_V4, link.Attrs().Name
	if want.IP.To4() == nil {
		family = netlink.FAMILY_V6
	}
	addrs, err := again(func() ([]netlink.Addr, error) { return a.host.AddrList(link, family) })
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("could not get list of IP addresses: %w", err)
	}
	for _, have := range addrs {
		if have.IPNet.String() == want.String() {
			return nil
		}
		if family == netlink.FAMILY_V6 && !have.Contains(want.IP) && !want.Contains(have.IP) {
			continue
		}
		if !a.ForceAddress {
			return fmt.Errorf("%q already has an IP address different from %v", name, want.String())
		}
		if err := a.host.AddrDel(link, &netlink.Addr{IPNet: have.IPNet}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("could not remove IP address from %q: %w", name, err)
		}
	}
	if err := a.host.AddrAdd(link, &netlink.Addr{IPNet: &want}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("could not add IP address %s to %q: %w", want.String(), name, err)
	}
	// A bridge takes the lowest address of its ports unless it is given one,
	// and would change with them.
	if err := a.host.LinkSetHardwareAddr(link, link.Attrs().HardwareAddr); err != nil {
		return fmt.Errorf("could not set bridge's mac: %w", err)
	}
	return nil
}

func enableForwarding(v6 bool) error {
	path := []string{"ipv4/ip_forward"}
	if v6 {
		path = []string{"ipv6/conf/all/forwarding"}
	}
	if on, err := os.ReadFile("/proc/sys/net/" + path[0]); err == nil && string(on) == "1\n" {
		return nil
	}
	return sysctl("1", path...)
}

// settle waits for the bridge's port and completes the result with what may
// have changed since it was begun.
func (a *attach) settle(ctx context.Context) error {
	name := a.port.Attrs().Name
	var port netlink.Link
	ok, err := wait(ctx, portTimeout, func() (bool, error) {
		link, err := a.host.LinkByName(name)
		port = link
		return err == nil && (a.DisableContainerInterface || link.Attrs().OperState == netlink.OperUp), err
	})
	if err == nil && !ok {
		err = ctx.Err()
	}
	if err == nil && !ok {
		err = fmt.Errorf("bridge port in error state: %s: %w", port.Attrs().OperState, errdefs.ErrUnavailable)
	}
	if err != nil {
		return err
	}
	br, err := findBridge(a.host, a.Bridge)
	if err != nil {
		return err
	}
	a.result.Interfaces[0].Mac = br.HardwareAddr.String()
	a.result.Interfaces[1].Mac = port.Attrs().HardwareAddr.String()
	return nil
}
