package bridge

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"berth/internal/host"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nameTries is how often a random name is drawn for the host's end.
const nameTries = 10

// handleIn opens a netlink socket in a namespace.
func handleIn(path string) (h *netlink.Handle, err error) {
	err = host.InNetNS(path, func() error {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	return h, err
}

// sysctl writes a value below /proc/sys/net of the calling thread's namespace.
func sysctl(value string, path ...string) error {
	return os.WriteFile(filepath.Join(append([]string{"/proc/sys/net"}, path...)...), []byte(value), 0)
}

// makeBridge makes the bridge unless it is there.
func (a *attach) makeBridge(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.makeBridgeLocked(); err != nil {
		return fmt.Errorf("failed to create bridge %q: %w", a.Bridge, err)
	}
	a.result = &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{{Name: a.bridge.Name, Mac: a.bridge.HardwareAddr.String()}},
	}
	return nil
}

func (a *attach) makeBridgeLocked() error {
	br, err := findBridge(a.host, a.Bridge)
	if isNoLink(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = a.Bridge, a.MTU
		wanted := &netlink.Bridge{LinkAttrs: attrs}
		if a.VLAN != 0 || a.VLANTrunk != nil {
			filtering := true
			wanted.VlanFiltering = &filtering
		}
		if err := a.host.LinkAdd(wanted); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("could not add %q: %w", a.Bridge, err)
		}
		br, err = findBridge(a.host, a.Bridge)
	}
	if err != nil {
		return err
	}
	if a.PromiscMode && br.Promisc == 0 {
		if err := a.host.SetPromiscOn(br); err != nil {
			return fmt.Errorf("could not set promiscuous mode on %q: %w", a.Bridge, err)
		}
	}
	// Routes are ours, not a router's on the bridge. There is no such file
	// without IPv6.
	_ = sysctl("0", "ipv6/conf", a.Bridge, "accept_ra")
	a.bridge = br
	if br.Flags&net.FlagUp != 0 {
		return nil
	}
	return a.host.LinkSetUp(br)
}

func findBridge(h *netlink.Handle, name string) (*netlink.Bridge, error) {
	link, err := h.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("could not lookup %q: %w", name, err)
	}
	br, ok := link.(*netlink.Bridge)
	if !ok {
		return nil, fmt.Errorf("%q already exists but is not a bridge", name)
	}
	return br, nil
}

// makePair makes the container's interface and the port of the bridge.
func (a *attach) makePair(context.Context) error {
	var err error
	a.port, a.end, err = a.pair(a.pod, a.args.IfName, a.MTU, a.mac)
	if err != nil {
		return err
	}
	a.undo = append(a.undo, func(context.Context) error { return a.remove(a.port) })
	if err := a.connect(a.port, a.VLAN, a.trunks, a.HairpinMode, a.PortIsolation); err != nil {
		return err
	}
	a.result.Interfaces = append(a.result.Interfaces,
		&types100.Interface{Name: a.port.Attrs().Name, Mac: a.port.Attrs().HardwareAddr.String()},
		&types100.Interface{Name: a.args.IfName, Mac: a.end.Attrs().HardwareAddr.String(), Sandbox: a.args.Netns})
	return nil
}

// remove takes a pair away by the host's end, which may be gone.
func (a *attach) remove(port netlink.Link) error {
	if err := a.host.LinkDel(port); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing %q: %w", port.Attrs().Name, err)
	}
	return nil
}

// pair makes a veth pair: one end in h's namespace, the other on the host, up.
func (a *attach) pair(h *netlink.Handle, name string, mtu int, mac string) (port, end netlink.Link, err error) {
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open the thread's network namespace: %w", err)
	}
	defer unix.Close(own)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	if mac != "" {
		if attrs.HardwareAddr, err = net.ParseMAC(mac); err != nil {
			return nil, nil, fmt.Errorf("failed to make veth pair: %w", err)
		}
	}
	var peer string
	for range nameTries {
		peer = randomName()
		err = h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerNamespace: netlink.NsFd(own)})
		if !errors.Is(err, unix.EEXIST) {
			break
		}
		if _, taken := a.host.LinkByName(peer); taken != nil {
			return nil, nil, fmt.Errorf("container veth name (%q) peer provided (%q) already exists", name, peer)
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("failed to make veth pair: %w", err)
	}
	if port, err = a.host.LinkByName(peer); err != nil {
		return nil, nil, fmt.Errorf("failed to lookup %q: %w", peer, err)
	}
	end, err = h.LinkByName(name)
	if err == nil {
		err = a.host.LinkSetUp(port)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("veth pair of %q: %w", name, err), a.remove(port))
	}
	_ = sysctl("0", "ipv6/conf", peer, "accept_ra") // see makeBridgeLocked
	return port, end, nil
}

func randomName() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return fmt.Sprintf("veth%x", b)
}

// connect makes port a port of the bridge.
func (a *attach) connect(port netlink.Link, vlan int, trunks []int, hairpin, isolated bool) error {
	name := port.Attrs().Name
	if err := a.host.LinkSetMaster(port, a.bridge); err != nil {
		return fmt.Errorf("failed to connect %q to bridge %v: %w", name, a.bridge.Name, err)
	}
	if hairpin {
		if err := a.host.LinkSetHairpin(port, true); err != nil {
			return fmt.Errorf("failed to setup hairpin mode for %v: %w", name, err)
		}
	}
	if isolated {
		if err := a.host.LinkSetIsolated(port, true); err != nil {
			return fmt.Errorf("failed to set isolated on for %v: %w", name, err)
		}
	}
	if (vlan != 0 || len(trunks) > 0) && !a.PreserveDefaultVLAN {
		if err := a.dropVLANs(port); err != nil {
			return fmt.Errorf("failed to remove default vlan on interface %q: %w", name, err)
		}
	}
	native := vlan
	if vlan == 0 && len(trunks) > 0 {
		native = 1 // as the reference has it for configurations that name none
	}
	if native != 0 && vlan != 0 {
		if err := a.host.BridgeVlanAdd(port, uint16(native), true, true, false, true); err != nil {
			return fmt.Errorf("failed to setup vlan tag on interface %q: %w", name, err)
		}
	}
	for _, id := range trunks {
		if err := a.host.BridgeVlanAdd(port, uint16(id), false, false, false, true); err != nil {
			return fmt.Errorf("failed to setup vlan tag on interface %q: %w", name, err)
		}
	}
	if native != 0 && vlan == 0 {
		if err := a.host.BridgeVlanAdd(port, uint16(native), true, true, false, true); err != nil {
			return fmt.Errorf("failed to setup default native vlan tag on interface %q: %w", name, err)
		}
	}
	return nil
}

// dropVLANs removes the VLANs that a new port has.
func (a *attach) dropVLANs(port netlink.Link) error {
	all, err := again(a.host.BridgeVlanList)
	if err != nil {
		return err
	}
	for _, v := range all[int32(port.Attrs().Index)] {
		if err := a.host.BridgeVlanDel(port, v.Vid, false, false, false, true); err != nil {
			return err
		}
	}
	return nil
}

// listTries is how often a list is asked for that others change meanwhile.
const listTries = 20

// again repeats a listing that a change interrupted.
func again[T any](list func() (T, error)) (T, error) {
	var out T
	var err error
	for range listTries {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return out, err
}

// vlanLink is the interface that has the gateway's addresses in a VLAN: one
// end of a pair on the host whose other end is a port in that VLAN.
func (a *attach) vlanLinkLocked() (netlink.Link, error) {
	name := fmt.Sprintf("%s.%d", a.bridge.Name, a.VLAN)
	link, err := a.host.LinkByName(name)
	if !isNoLink(err) {
		if err != nil {
			err = fmt.Errorf("failed to find interface %q: %w", name, err)
		}
		return link, err
	}
	port, end, err := a.pair(a.host, name, a.bridge.MTU, "")
	if err == nil {
		if err = a.connect(port, a.VLAN, nil, false, false); err == nil {
			err = a.host.LinkSetUp(end)
		}
		if err != nil {
			err = errors.Join(err, a.remove(port))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("failed to create vlan gateway %q: %w", name, err)
	}
	return end, nil
}

// flags of an address that is not yet, or never will be, usable.
const (
	tentative = unix.IFA_F_TENTATIVE
	failed    = unix.IFA_F_DADFAILED
)

func hasFlag(addrs []netlink.Addr, flag int) (netlink.Addr, bool) {
	i := slices.IndexFunc(addrs, func(a netlink.Addr) bool { return a.Flags&flag != 0 })
	if i < 0 {
		return netlink.Addr{}, false
	}
	return addrs[i], true
}
