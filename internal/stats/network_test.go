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

func names(t *testing.T, netns string) string {
	t.Helper()
	u, err := Network(netns)
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
	for _, test := range []struct {
		links []string
		want  string
	}{
		{nil, "default "},
		{[]string{"down"}, "default "},
		{[]string{"net1", "eth0", "down", "net2"}, "default eth0 net1 net2"},
		{[]string{"net2", "net1"}, "default net2 net1"},
	} {
		if diff := cmp.Diff(test.want, names(t, podNetwork(t, test.links...))); diff != "" {
			t.Errorf("%v: %s", test.links, diff)
		}
	}
	if _, err := Network("/nonexistent/net"); !errdefs.IsNotFound(err) {
		t.Errorf("no namespace: %v", err)
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
	u, err := Network(netns)
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
	if diff := cmp.Diff(link{rxBytes: 258, txBytes: 259, rxErrors: 260, txErrors: 261}, l, cmp.AllowUnexported(link{})); diff != "" {
		t.Error(diff)
	}
	l = link{}
	l.setCounters(data[:40])
	if l != (link{}) {
		t.Error("counters from a short message")
	}
}

func FuzzParseLinks(f *testing.F) {
	f.Add([]byte{32, 0, 0, 0, 16, 0, 0, 0})
	f.Fuzz(func(t *testing.T, dump []byte) { parseLinks(dump) })
}

func BenchmarkNetwork(b *testing.B) {
	netns := podNetwork(b, "eth0")
	b.ReportAllocs()
	defer reportCPU(b)()
	for b.Loop() {
		if _, err := Network(netns); err != nil {
			b.Fatal(err)
		}
	}
}
