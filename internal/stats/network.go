package stats

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/host"
)

// defaultInterface is the name by which CNI's runtimes give a pod its first
// interface.
const defaultInterface = "eth0"

// Network returns the traffic of the network namespace pinned at netns: eth0,
// or else its first interface, as the default one, and the others but for
// loopback and those that were never up. ErrNotFound: there is no namespace.
func Network(netns string) (*runtime.NetworkUsage, error) {
	var dump []byte
	err := host.InNetNS(netns, func() (err error) {
		dump, err = syscall.NetlinkRIB(unix.RTM_GETLINK, unix.AF_UNSPEC)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("network usage: %w", err)
	}
	at := now()
	links, err := parseLinks(dump)
	if err != nil {
		return nil, fmt.Errorf("network usage of namespace %s: %w", netns, err)
	}
	return networkUsage(links, at), nil
}

func networkUsage(links []link, at int64) *runtime.NetworkUsage {
	slices.SortFunc(links, func(a, b link) int { return cmp.Compare(a.index, b.index) })
	u := &runtime.NetworkUsage{Timestamp: at}
	for _, l := range links {
		if !l.wanted() {
			continue
		}
		u.Interfaces = append(u.Interfaces, &runtime.NetworkInterfaceUsage{
			Name:     l.name,
			RxBytes:  value(l.rxBytes),
			RxErrors: value(l.rxErrors),
			TxBytes:  value(l.txBytes),
			TxErrors: value(l.txErrors),
		})
	}
	if len(u.Interfaces) == 0 {
		return u
	}
	first := max(0, slices.IndexFunc(u.Interfaces, func(i *runtime.NetworkInterfaceUsage) bool { return i.Name == defaultInterface }))
	u.DefaultInterface = u.Interfaces[first]
	u.Interfaces = slices.Delete(u.Interfaces, first, first+1)
	return u
}

// A link is a network interface with its counters.
type link struct {
	index, flags                         uint32
	name                                 string
	rxBytes, txBytes, rxErrors, txErrors uint64
}

// wanted leaves out loopback and what the kernel puts into every namespace,
// such as tunl0: it is down.
func (l link) wanted() bool {
	return l.flags&unix.IFF_LOOPBACK == 0 && (l.flags&unix.IFF_UP != 0 || l.rxBytes+l.txBytes > 0)
}

// parseLinks reads the answer to RTM_GETLINK.
func parseLinks(dump []byte) ([]link, error) {
	messages, err := syscall.ParseNetlinkMessage(dump)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	var links []link
	for _, m := range messages {
		if m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg {
			continue
		}
		l := link{index: binary.NativeEndian.Uint32(m.Data[4:]), flags: binary.NativeEndian.Uint32(m.Data[8:])}
		attributes, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return nil, fmt.Errorf("netlink: interface %d: %w", l.index, err)
		}
		for _, a := range attributes {
			switch a.Attr.Type {
			case unix.IFLA_IFNAME:
				l.name = strings.TrimRight(string(a.Value), "\x00")
			case unix.IFLA_STATS64:
				l.setCounters(a.Value)
			}
		}
		links = append(links, l)
	}
	return links, nil
}

// setCounters reads the start of struct rtnl_link_stats64: packets, bytes and
// errors, each received and sent.
func (l *link) setCounters(data []byte) {
	if len(data) < 6*8 {
		return
	}
	l.rxBytes = binary.NativeEndian.Uint64(data[2*8:])
	l.txBytes = binary.NativeEndian.Uint64(data[3*8:])
	l.rxErrors = binary.NativeEndian.Uint64(data[4*8:])
	l.txErrors = binary.NativeEndian.Uint64(data[5*8:])
}
