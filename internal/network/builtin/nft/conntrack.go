package nft

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ForgetUDP drops what the kernel knows of UDP traffic to ports of this host:
// new rules do not count for packets of a connection that is known.
func (c *Conn) ForgetUDP(f Family, ports []uint16) error {
	if len(ports) == 0 {
		return nil
	}
	family := netlink.InetFamily(unix.AF_INET)
	if f == IPv6 {
		family = unix.AF_INET6
	}
	var filters []netlink.CustomConntrackFilter
	for _, port := range ports {
		f := &netlink.ConntrackFilter{}
		if err := errors.Join(f.AddProtocol(unix.IPPROTO_UDP), f.AddPort(netlink.ConntrackOrigDstPort, port)); err != nil {
			return err
		}
		filters = append(filters, f)
	}
	if c.conntrack == nil {
		h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("conntrack: %w", err)
		}
		c.conntrack = h // closed with c: its close takes as long
	}
	if _, err := c.conntrack.ConntrackDeleteFilters(netlink.ConntrackTable, family, filters...); err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	return nil
}
