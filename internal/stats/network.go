package stats

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// defaultInterface is the name by which CNI's runtimes give a pod its first
// interface.
const defaultInterface = "eth0"

// Network returns the traffic of the network namespace pinned at netns: eth0,
// or else its first interface, as the default one, and the others but for
// loopback and those that were never up. ErrNotFound: there is no namespace.
func (r *Reader) Network(netns string) (*runtime.NetworkUsage, error) {
	links, err := r.links.of(netns)
	if err != nil {
		return nil, err
	}
	return networkUsage(links, now()), nil
}

func networkUsage(links []link, at int64) *runtime.NetworkUsage {
	u := &runtime.NetworkUsage{Timestamp: at}
	for _, l := range links {
		u.Interfaces = append(u.Interfaces, &runtime.NetworkInterfaceUsage{
			Name:     l.name,
			RxBytes:  value(l.received.bytes),
			RxErrors: value(l.received.errors),
			TxBytes:  value(l.sent.bytes),
			TxErrors: value(l.sent.errors),
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
	index, flags   uint32
	name           string
	received, sent traffic
	// target is the number of the namespace that was asked for, which a kernel
	// that knows of it repeats.
	target int32
}

type traffic struct{ bytes, packets, errors, dropped uint64 }

// wanted leaves out loopback and what the kernel puts into every namespace,
// such as tunl0: it is down.
func (l link) wanted() bool {
	return l.flags&unix.IFF_LOOPBACK == 0 && (l.flags&unix.IFF_UP != 0 || l.received.bytes+l.sent.bytes > 0)
}

// sorted are the wanted ones in the order in which they were made.
func sorted(links []link) []link {
	links = slices.DeleteFunc(links, func(l link) bool { return !l.wanted() })
	slices.SortFunc(links, func(a, b link) int { return cmp.Compare(a.index, b.index) })
	return links
}

// parseLink reads the body of an RTM_NEWLINK message.
func parseLink(data []byte) (l link, err error) {
	if len(data) < unix.SizeofIfInfomsg {
		return l, fmt.Errorf("netlink: an interface in %d bytes", len(data))
	}
	l.target = ownNamespace
	l.index, l.flags = binary.NativeEndian.Uint32(data[4:]), binary.NativeEndian.Uint32(data[8:])
	err = attributes(data[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.name = strings.ToValidUTF8(strings.TrimRight(string(value), "\x00"), "\uFFFD")
		case unix.IFLA_TARGET_NETNSID:
			if len(value) >= 4 {
				l.target = int32(binary.NativeEndian.Uint32(value))
			}
		case unix.IFLA_STATS64:
			l.setCounters(value)
		}
	})
	if err != nil {
		return l, fmt.Errorf("netlink: interface %d: %w", l.index, err)
	}
	return l, nil
}

// setCounters reads the start of struct rtnl_link_stats64: packets, bytes,
// errors and drops, each received and sent.
func (l *link) setCounters(data []byte) {
	if len(data) < 8*8 {
		return
	}
	at := func(i int) uint64 { return binary.NativeEndian.Uint64(data[i*8:]) }
	l.received = traffic{packets: at(0), bytes: at(2), errors: at(4), dropped: at(6)}
	l.sent = traffic{packets: at(1), bytes: at(3), errors: at(5), dropped: at(7)}
}
