package stats

import (
	"fmt"
	"net"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth/internal/host"
)

// podNetwork pins a network namespace with the links.
func podNetwork(t testing.TB, links ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ns")
	must(t, host.PinNamespaces(dir, host.NamespaceOptions{Net: true}))
	t.Cleanup(func() {
		if err := host.UnpinNamespaces(dir); err != nil {
			t.Error(err)
		}
	})
	netns := filepath.Join(dir, "net")
	must(t, host.InNetNS(netns, func() error {
		for _, name := range links {
			if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
				return err
			}
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if name != "down" {
				if err := netlink.LinkSetUp(link); err != nil {
					return err
				}
			}
		}
		return nil
	}))
	return netns
}

func names(t *testing.T, r *Reader, netns string) string {
	t.Helper()
	u, err := r.Network(netns)
	must(t, err)
	if u.Timestamp <= 0 {
		t.Errorf("timestamp %d", u.Timestamp)
	}
	text := "default " + u.GetDefaultInterface().GetName()
	for _, i := range u.Interfaces {
		text += " " + i.Name
	}
	return text
}

func TestNetwork(t *testing.T) {
	for _, inside := range []bool{false, true} {
		r := &Reader{links: links{inside: inside}}
		defer func() { must(t, r.Close()) }()
		for _, test := range []struct {
			links []string
			want  string
		}{
			{nil, "default "},
			{[]string{"down"}, "default "},
			{[]string{"net1", "eth0", "down", "net2"}, "default eth0 net1 net2"},
			{[]string{"net2", "net1"}, "default net2 net1"},
		} {
			netns := podNetwork(t, test.links...)
			for range 2 { // the second time its number is known
				if diff := cmp.Diff(test.want, names(t, r, netns)); diff != "" {
					t.Errorf("%v: %s", test.links, diff)
				}
			}
		}
		if r.links.inside != inside {
			t.Error("this kernel answers for other namespaces, which was not used")
		}
		if _, err := r.Network("/nonexistent/net"); !errdefs.IsNotFound(err) {
			t.Errorf("no namespace: %v", err)
		}
		file := filepath.Join(t.TempDir(), "file")
		write(t, file, "")
		if _, err := r.Network(file); !errdefs.IsNotFound(err) {
			t.Errorf("no namespace: %v", err)
		}
	}
}

// A namespace that took the place of another one, and perhaps its number too,
// is not taken for it.
func TestNetworkReplaced(t *testing.T) {
	r := new(Reader)
	defer func() { must(t, r.Close()) }()
	dir := filepath.Join(t.TempDir(), "ns")
	netns := filepath.Join(dir, "net")
	for range 3 {
		must(t, host.PinNamespaces(dir, host.NamespaceOptions{Net: true}))
		_, err := r.Network(netns)
		if errdefs.IsNotFound(err) { // the old one's number was kept
			_, err = r.Network(netns)
		}
		must(t, err)
		must(t, host.UnpinNamespaces(dir))
		if _, err := r.Network(netns); !errdefs.IsNotFound(err) {
			t.Errorf("no namespace: %v", err)
		}
	}
}

// What is known of namespaces that are no more does not pile up.
func TestNetworksForgotten(t *testing.T) {
	r := new(Reader)
	defer func() { must(t, r.Close()) }()
	netns := podNetwork(t, "eth0")
	names(t, r, netns)
	for i := range leastKnown {
		r.links.known[fmt.Sprintf("/gone/%d", i)] = namespace{inode: uint64(i)}
	}
	names(t, r, podNetwork(t))
	if n := len(r.links.known); n != 2 {
		t.Errorf("%d namespaces are known", n)
	}
}

// The counters are those that the kernel's own text has.
func TestNetworkCounters(t *testing.T) {
	netns := podNetwork(t)
	peer := fmt.Sprintf("bts%d", unix.Getpid())
	must(t, host.InNetNS(netns, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: peer}); err != nil {
			return err
		}
		for _, name := range []string{"eth0", peer} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(eth0, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 9, 8, 7), Mask: net.CIDRMask(24, 32)}}); err != nil {
			return err
		}
		conn, err := net.Dial("udp", "10.9.8.255:9")
		if err != nil {
			conn, err = net.Dial("udp", "10.9.8.6:9")
		}
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.Write(make([]byte, 100)) // an ARP request at the least
		return nil
	}))
	r := new(Reader)
	defer func() { must(t, r.Close()) }()
	u, err := r.Network(netns)
	must(t, err)
	if u.GetDefaultInterface().GetName() != "eth0" || len(u.Interfaces) != 1 || u.Interfaces[0].Name != peer {
		t.Fatalf("interfaces %v", u)
	}
	if sent, received := u.DefaultInterface.TxBytes.Value, u.Interfaces[0].RxBytes.Value; sent == 0 || received == 0 {
		t.Errorf("sent %d, received by the peer %d", sent, received)
	}
}

func TestSetCounters(t *testing.T) {
	var data []byte
	for i := range uint64(24) {
		data = append(data, byte(i), 1, 0, 0, 0, 0, 0, 0)
	}
	var l link
	l.setCounters(data)
	want := link{received: traffic{packets: 256, bytes: 258, errors: 260, dropped: 262}, sent: traffic{packets: 257, bytes: 259, errors: 261, dropped: 263}}
	if diff := cmp.Diff(want, l, cmp.AllowUnexported(link{}, traffic{})); diff != "" {
		t.Error(diff)
	}
	l = link{}
	l.setCounters(data[:40])
	if l != (link{}) {
		t.Error("counters from a short message")
	}
}

func FuzzLink(f *testing.F) {
	f.Add([]byte{32, 0, 0, 0, 16, 0, 0, 0}, uint32(0))
	f.Fuzz(func(t *testing.T, packet []byte, sequence uint32) {
		s := netlinkSocket{sequence: sequence}
		s.messages(packet, func(_ uint16, data []byte) error {
			_, err := parseLink(data)
			return err
		})
		parseLink(packet)
	})
}

func BenchmarkNetwork(b *testing.B) {
	netns := podNetwork(b, "eth0")
	for _, inside := range []bool{false, true} {
		b.Run(map[bool]string{false: "outside", true: "inside"}[inside], func(b *testing.B) {
			r := &Reader{links: links{inside: inside}}
			b.ReportAllocs()
			defer reportCPU(b)()
			for b.Loop() {
				if _, err := r.Network(netns); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
