package builtin

import (
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

// ipam is host-local with the ranges and the keys after it.
func ipamOf(rest string) string {
	return `"ipam":{"type":"host-local","dataDir":"DIR/store",` + rest + `}`
}

const (
	v4   = `"ranges":[[{"subnet":"10.5.0.0/24"}]]`
	v6   = `"ranges":[[{"subnet":"fd05::/64"}]]`
	dual = `"ranges":[[{"subnet":"10.5.0.0/24"}],[{"subnet":"fd05::/64"}]]`
)

// bridgeConf is a list of bridge alone.
func bridgeConf(rest string) string {
	return `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge","bridge":"br0",` + rest + `}]}`
}

// portConf is one with portmap after it.
func portConf(bridge, portmap string) string {
	return `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge","bridge":"br0",` + bridge +
		`},{"type":"portmap","capabilities":{"portMappings":true}` + portmap + `}]}`
}

type portMap map[string]any

func portsOf(ports ...portMap) map[string]any { return map[string]any{"portMappings": ports} }

var somePorts = portsOf(
	portMap{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
	portMap{"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "10.1.2.3"},
	portMap{"hostPort": 443, "containerPort": 8443, "protocol": "tcp", "hostIP": "fd01::7"},
	portMap{"hostPort": 90, "containerPort": 91, "protocol": "sctp", "hostIP": "0.0.0.0"},
	portMap{"hostPort": 91, "containerPort": 92, "protocol": "udp", "hostIP": "::"},
)

var manyPorts = func() map[string]any {
	var ports []portMap
	for i := range 20 {
		ports = append(ports, portMap{"hostPort": 9000 + i, "containerPort": 80, "protocol": "tcp"})
	}
	return portsOf(ports...)
}()

// The configurations that both implementations are asked for.
var configurations = []struct {
	name, conf string
	caps       map[string]any
	// noCheck: the reference's own CHECK fails on what it made, for it asks for
	// IPAM always, and looks for routes in the main table.
	noCheck bool
}{
	{name: "layer 2", conf: bridgeConf(`"mtu":1400`), noCheck: true},
	{name: "IPv4", conf: bridgeConf(ipamOf(v4))},
	{name: "IPv6", conf: bridgeConf(ipamOf(v6))},
	{name: "dual stack gateway", conf: bridgeConf(`"isGateway":true,` + ipamOf(dual+`,"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]`))},
	{name: "default gateway", conf: bridgeConf(`"isDefaultGateway":true,` + ipamOf(dual))},
	{name: "default gateway with a route of its own", conf: bridgeConf(`"isDefaultGateway":true,` + ipamOf(v4+`,"routes":[{"dst":"0.0.0.0/0","gw":"10.5.0.9"}]`))},
	{name: "old keys", conf: bridgeConf(`"isGateway":true,` + ipamOf(`"subnet":"10.5.0.0/16","rangeStart":"10.5.3.10","rangeEnd":"10.5.3.20","gateway":"10.5.3.99"`))},
	{name: "several ranges", conf: bridgeConf(`"isGateway":true,` + ipamOf(`"ranges":[[{"subnet":"10.5.0.0/24","rangeStart":"10.5.0.9","rangeEnd":"10.5.0.9"},{"subnet":"10.6.0.0/24"}],[{"subnet":"fd05::/64"}],[{"subnet":"fd06::/112","gateway":"fd06::99"}]]`))},
	{name: "routes", conf: bridgeConf(ipamOf(v4 + `,"routes":[{"dst":"192.0.2.0/24","gw":"10.5.0.7","priority":7},{"dst":"198.51.100.0/24","table":33},{"dst":"203.0.113.0/24","scope":0,"mtu":1300}]`)), noCheck: true},
	{name: "odd prefixes", conf: bridgeConf(`"isGateway":true,"ipMasq":true,"ipMasqBackend":"nftables",` + ipamOf(`"ranges":[[{"subnet":"10.5.0.0/19"}],[{"subnet":"fd05::/61"}]]`))},
	{name: "force address", conf: bridgeConf(`"isGateway":true,"forceAddress":true,` + ipamOf(v4))},
	{name: "hairpin", conf: bridgeConf(`"hairpinMode":true,` + ipamOf(v4))},
	{name: "promiscuous", conf: bridgeConf(`"promiscMode":true,` + ipamOf(v4))},
	{name: "isolated", conf: bridgeConf(`"portIsolation":true,` + ipamOf(v4))},
	{name: "MTU", conf: bridgeConf(`"mtu":1234,"isGateway":true,` + ipamOf(v4))},
	{name: "no interface in the container", conf: bridgeConf(`"disableContainerInterface":true`), noCheck: true},
	{name: "duplicate address detection", conf: bridgeConf(`"enabledad":true,"isGateway":true,` + ipamOf(v6))},
	{name: "VLAN", conf: bridgeConf(`"vlan":100,"isGateway":true,` + ipamOf(dual))},
	{name: "VLAN, default kept", conf: bridgeConf(`"vlan":100,"preserveDefaultVlan":true,` + ipamOf(v4))},
	{name: "VLAN trunk", conf: bridgeConf(`"vlanTrunk":[{"id":7},{"minID":20,"maxID":22}]`), noCheck: true},
	{name: "VLAN and trunk", conf: bridgeConf(`"vlan":5,"vlanTrunk":[{"minID":20,"maxID":22}]`), noCheck: true},
	{name: "MAC", conf: bridgeConf(`"args":{"cni":{"mac":"02:11:22:33:44:55"}},` + ipamOf(v4))},
	{name: "DNS", conf: bridgeConf(`"dns":{"nameservers":["10.1.1.1"],"domain":"d","search":["s"],"options":["o"]},` + ipamOf(v4))},
	{name: "resolv.conf", conf: bridgeConf(ipamOf(v4 + `,"resolvConf":"DIR/resolv.conf"`))},
	{name: "masquerade nftables", conf: bridgeConf(`"isGateway":true,"ipMasq":true,"ipMasqBackend":"nftables",` + ipamOf(dual))},
	{name: "masquerade iptables", conf: bridgeConf(`"isGateway":true,"ipMasq":true,"ipMasqBackend":"iptables",` + ipamOf(dual))},
	{name: "masquerade by default", conf: bridgeConf(`"isGateway":true,"ipMasq":true,` + ipamOf(v4))},
	{name: "ports, none", conf: portConf(`"isGateway":true,`+ipamOf(dual), `,"backend":"nftables"`)},
	{name: "ports nftables", conf: portConf(`"isGateway":true,`+ipamOf(dual), `,"backend":"nftables"`), caps: somePorts},
	{name: "ports nftables without SNAT", conf: portConf(`"isGateway":true,`+ipamOf(dual), `,"backend":"nftables","snat":false`), caps: somePorts},
	{name: "ports iptables", conf: portConf(`"isGateway":true,`+ipamOf(dual), `,"backend":"iptables"`), caps: somePorts},
	{name: "ports iptables without SNAT", conf: portConf(`"isGateway":true,`+ipamOf(v4), `,"backend":"iptables","snat":false`), caps: somePorts},
	{name: "ports iptables, all masqueraded", conf: portConf(`"isGateway":true,`+ipamOf(dual), `,"masqAll":true,"markMasqBit":5,"backend":"iptables"`), caps: somePorts},
	{name: "many ports", conf: portConf(`"isGateway":true,`+ipamOf(v4), ``), caps: manyPorts},
	{name: "all of it", conf: portConf(`"isDefaultGateway":true,"ipMasq":true,"hairpinMode":true,`+ipamOf(dual), ``), caps: somePorts},
	{name: "loopback", conf: `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"loopback"}]}`},
	{name: "loopback after bridge", conf: `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge","bridge":"br0",` + ipamOf(v4) + `},{"type":"loopback"}]}`},
}

// What both say and leave is the same, after ADD and after DEL, whoever made
// what the other removes.
func TestSameAsReference(t *testing.T) {
	for _, c := range configurations {
		t.Run(c.name, func(t *testing.T) {
			if strings.Contains(c.conf, `"vlan`) && !hasVLANs(t) {
				t.Skip("the kernel was built without CONFIG_BRIDGE_VLAN_FILTERING")
			}
			var added, result, removed [2]string
			for adder := range 2 {
				for remover := range 2 {
					t.Run(sides(t)[adder].name+" then "+sides(t)[remover].name, func(t *testing.T) {
						w, s := newWorld(t, c.conf, c.caps), sides(t)
						mustWrite(t, w.dir+"/resolv.conf", "# text\nnameserver 10.1.1.1\nsearch a b\n options ndots:5\ndomain d\nnonsense\n")
						p := w.pod()
						r, state := w.resultText(w.add(s[adder], p)), w.state()
						if adder == remover {
							result[adder], added[adder] = r, state
						}
						if !c.noCheck {
							for _, by := range s {
								if err := w.cni(by).CheckNetworkList(t.Context(), w.list, p); err != nil {
									t.Errorf("CHECK by %s: %v", by.name, err)
								}
							}
						}
						w.del(s[remover], p)
						state = w.state()
						if adder == remover {
							removed[adder] = state
						} else {
							same(t, "state after DEL", removed[0], state)
						}
						w.del(s[remover], p) // twice
						same(t, "state after DEL twice", removed[0], w.state())
						if o, ok := s[1].exec.(*ours); ok && len(o.executed) > 0 && adder == 1 && remover == 1 {
							t.Errorf("executed: %v", o.executed)
						}
					})
				}
			}
			same(t, "result of ADD", result[0], result[1])
			same(t, "state after ADD", added[0], added[1])
			same(t, "state after DEL", removed[0], removed[1])
		})
	}
}

// hasVLANs tells whether the kernel's bridges know VLANs. Where they do not,
// both sides fail alike: see TestErrors.
func hasVLANs(t *testing.T) (has bool) {
	t.Helper()
	t.Run("VLANs in the kernel", func(t *testing.T) {
		hostNS(t)
		has = output("sh", "-c", "ip link add br0 type bridge vlan_filtering 1 && echo yes") != ""
	})
	return has
}

// Every version of CNI gets its own form of the result.
func TestVersions(t *testing.T) {
	for _, v := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(v, func(t *testing.T) {
			conf := strings.Replace(portConf(`"isDefaultGateway":true,`+ipamOf(dual), `,"backend":"nftables"`), "1.0.0", v, 1)
			var got [2]string
			for i := range 2 {
				t.Run(sides(t)[i].name, func(t *testing.T) {
					w := newWorld(t, conf, somePorts)
					s := sides(t)[i]
					p := w.pod()
					got[i] = w.resultText(w.add(s, p))
					if v == "1.1.0" {
						if err := w.cni(s).GetStatusNetworkList(t.Context(), w.list); err != nil {
							t.Error(err)
						}
					}
					info, err := w.cni(s).GetVersionInfo(t.Context(), "bridge")
					if err != nil {
						t.Fatal(err)
					}
					got[i] += strings.Join(info.SupportedVersions(), " ")
					w.del(s, p)
				})
			}
			same(t, "result", got[0], got[1])
		})
	}
}

// What fails, fails with the same words.
func TestErrors(t *testing.T) {
	tiny := ipamOf(`"ranges":[[{"subnet":"10.5.0.0/30"}]]`)
	for _, c := range []struct {
		name, conf string
		caps       map[string]any
		// before is done first, with a pod that is attached already.
		before func(w *world, s side, p *libcni.RuntimeConf)
		change func(*libcni.RuntimeConf)
	}{
		{name: "full range", conf: bridgeConf(tiny), before: func(w *world, s side, _ *libcni.RuntimeConf) { w.add(s, w.pod()) }},
		{name: "interface is there", conf: bridgeConf(ipamOf(v4)), before: func(w *world, s side, p *libcni.RuntimeConf) { w.add(s, p) }},
		{name: "address is given already", conf: bridgeConf(ipamOf(v4)),
			before: func(w *world, s side, p *libcni.RuntimeConf) {
				mustWrite(w.t, w.dir+"/store/net/10.5.0.9", "pod-1\r\neth0")
			}},
		{name: "another address on the bridge", conf: bridgeConf(`"isGateway":true,` + ipamOf(v4)), before: func(w *world, s side, _ *libcni.RuntimeConf) {
			was := w.list
			w.list = w.parse(strings.ReplaceAll(bridgeConf(`"isGateway":true,`+ipamOf(v4)), "10.5.0", "10.9.9"))
			w.add(s, w.pod())
			w.list = was
		}},
		{name: "no such namespace", conf: bridgeConf(ipamOf(v4)), change: func(p *libcni.RuntimeConf) { p.NetNS += "-none" }},
		{name: "hairpin and promiscuous", conf: bridgeConf(`"hairpinMode":true,"promiscMode":true,` + ipamOf(v4))},
		{name: "IPAM without an interface", conf: bridgeConf(`"disableContainerInterface":true,` + ipamOf(v4))},
		{name: "VLAN out of range", conf: bridgeConf(`"vlan":5000`)},
		{name: "VLAN", conf: bridgeConf(`"vlan":100`)}, // goes through where the kernel has VLANs
		{name: "bad trunk", conf: bridgeConf(`"vlanTrunk":[{"minID":5}]`)},
		{name: "no bridge", conf: `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge","bridge":"lo",` + ipamOf(v4) + `}]}`},
		{name: "no ranges", conf: bridgeConf(ipamOf(`"ranges":[]`))},
		{name: "host bits", conf: bridgeConf(ipamOf(`"ranges":[[{"subnet":"10.5.0.1/24"}]]`))},
		{name: "overlap", conf: bridgeConf(ipamOf(`"ranges":[[{"subnet":"10.5.0.0/24"}],[{"subnet":"10.5.0.0/16"}]]`))},
		{name: "no resolv.conf", conf: bridgeConf(ipamOf(v4 + `,"resolvConf":"/none"`))},
		{name: "unknown masquerade", conf: bridgeConf(`"ipMasq":true,"ipMasqBackend":"ufw",` + ipamOf(v4))},
		{name: "portmap alone", conf: `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"portmap"}]}`},
		{name: "portmap, unknown backend", conf: portConf(ipamOf(v4), `,"backend":"ufw"`)},
		{name: "portmap, bad bit", conf: portConf(ipamOf(v4), `,"markMasqBit":32`)},
		{name: "portmap, bad port", conf: portConf(ipamOf(v4), ``), caps: portsOf(portMap{"hostPort": -1, "containerPort": 80, "protocol": "tcp"})},
		{name: "bad name", conf: strings.Replace(bridgeConf(ipamOf(v4)), `"net"`, `"a b"`, 1)},
		{name: "unknown version", conf: strings.Replace(bridgeConf(ipamOf(v4)), `1.0.0`, `0.9.9`, 1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got [2]string
			for i := range 2 {
				t.Run(sides(t)[i].name, func(t *testing.T) {
					w, s := newWorld(t, c.conf, c.caps), sides(t)[i]
					p := w.pod()
					if c.before != nil {
						c.before(w, s, p)
					}
					if c.change != nil {
						c.change(p)
					}
					before := w.state()
					_, err := w.cni(s).AddNetworkList(t.Context(), w.list, p)
					if err == nil && c.name == "VLAN" {
						return
					}
					if err == nil {
						t.Fatal("ADD went through")
					}
					got[i] = strings.ReplaceAll(said(t, err), w.dir, "DIR")
					if c.name == "no such namespace" {
						got[i], _, _ = strings.Cut(got[i], ": ")
					}
					if i == 1 && len(w.list.Plugins) == 1 { // what came before is the runtime's to undo
						leaves(t, before, w.state())
					}
				})
			}
			same(t, "error", got[0], got[1])
		})
	}
}

// leaves compares states around an ADD that failed: the bridge may stay, and
// which address was last.
func leaves(t testing.TB, before, after string) {
	t.Helper()
	keep := func(l string) bool {
		return !strings.Contains(l, "br0") && !strings.Contains(l, "last_reserved") && !strings.Contains(l, "/lock")
	}
	podsOf := func(s string) string { _, s, _ = strings.Cut(s, "## rules"); return lines(s, keep) }
	same(t, "left by an ADD that failed", podsOf(before), podsOf(after))
	if n := strings.Count(after, `"ifname":"vethX"`) - strings.Count(before, `"ifname":"vethX"`); n != 0 {
		t.Errorf("%d links left on the host", n)
	}
}
