package network

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"berth/internal/host"
	"berth/internal/testkit"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// settled waits for the kernel's check that a new bridge's IPv6 address is
// used by nobody else; the bridge plugin does not.
func (e *env) settled() {
	e.t.Helper()
	e.eventually("no address is tentative", func() bool {
		out, err := exec.Command("ip", "-6", "addr", "show", "tentative").Output()
		return err == nil && len(out) == 0
	})
}

// serve answers one line to each who connects to the pod's port.
func serve(t *testing.T, p Pod, network, addr string) {
	t.Helper()
	testkit.Listen(t, p.NetNS, network, addr, func(c net.Conn) { _, _ = io.WriteString(c, p.ID) }) // who reads it checks it
}

// reach connects from the namespace, "" for the host's, and returns who answers.
func reach(t *testing.T, netns, addr string) string {
	t.Helper()
	var said []byte
	dial := func() error {
		c, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		said, err = io.ReadAll(c)
		return err
	}
	var err error
	if netns == "" {
		err = dial()
	} else {
		err = host.InNetNS(netns, dial)
	}
	if err != nil {
		t.Errorf("reaching %s from %q: %v", addr, netns, err)
	}
	return string(said)
}

func TestBuiltInNetwork(t *testing.T) { eachWay(t, testBuiltInNetwork) }

func testBuiltInNetwork(t *testing.T, way func(*Options)) {
	e := newEnv(t, nil, way)
	unchanged := e.unchanged()
	a, b := e.pod(), e.pod()
	ra, rb := e.add(a), e.add(b)
	within(t, ra.IPs, "10.88.16.0/24", "fd00:88:16::/64")
	within(t, rb.IPs, "10.88.16.0/24", "fd00:88:16::/64")
	if ra.Network != "bt0" || !strings.Contains(string(ra.Raw), ra.IPs[1]) {
		t.Errorf("result %+v", ra)
	}
	serve(t, a, "tcp", ":80")
	e.settled()
	for _, from := range []string{b.NetNS, "", a.NetNS} {
		for _, ip := range ra.IPs {
			if got := reach(t, from, net.JoinHostPort(ip, "80")); got != a.ID {
				t.Errorf("%s from %q: %q", ip, from, got)
			}
		}
	}
	if got := reach(t, a.NetNS, "127.0.0.1:80"); got != a.ID {
		t.Errorf("loopback: %q", got)
	}
	if err := e.Check(t.Context(), a); err != nil {
		t.Error("check:", err)
	}
	e.del(a)
	e.del(b)
	if err := e.Check(t.Context(), a); !errdefs.IsNotFound(err) {
		t.Error("check of a detached pod:", err)
	}
	unchanged()
	e.del(a) // again: nothing happens
	e.del(e.pod())
	unchanged()
}

func TestHostPorts(t *testing.T) { eachWay(t, testHostPorts) }

func testHostPorts(t *testing.T, way func(*Options)) {
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			e := newEnv(t, map[string]string{"10-net.conflist": bridgeList("1.0.0", "net", backend, "fd00:88:17::/64")}, way)
			unchanged := e.unchanged()
			a, b := e.pod(), e.pod()
			a.PortMappings = []*runtime.PortMapping{
				{ContainerPort: 80, HostPort: 18080},
				{ContainerPort: 81},
				{ContainerPort: 80, HostPort: 18081, HostIp: "10.88.17.1"},
			}
			e.add(a)
			e.add(b)
			for _, want := range []string{"10.88.17.3", "fd00:88:17::3", "18080", "addresses/net/10.88.17.2\n", "veth", "results/net-" + a.ID} {
				if state := e.state(); !strings.Contains(state, want) {
					t.Errorf("the comparison of states would not see %q:\n%s", want, state)
				}
			}
			serve(t, a, "tcp", ":80")
			e.settled()
			for _, try := range []struct{ from, addr string }{
				{"", "127.0.0.1:18080"},
				{b.NetNS, "10.88.17.1:18080"},
				{b.NetNS, "[fd00:88:17::1]:18080"},
				{b.NetNS, "10.88.17.1:18081"},
				{a.NetNS, "10.88.17.1:18080"}, // hairpin
			} {
				if got := reach(t, try.from, try.addr); got != a.ID {
					t.Errorf("%s from %q: %q", try.addr, try.from, got)
				}
			}
			e.del(a)
			e.del(b)
			unchanged()
		})
	}
}

// bridgeList is a configuration of the reference plugins with both families.
func bridgeList(version, name, backend, subnet6 string, more ...string) string {
	return fmt.Sprintf(`{"cniVersion": %q, "name": %q, "plugins": [
		{"type": "bridge", "bridge": "bt-%s", "isGateway": true, "ipMasq": true, "ipMasqBackend": %q, "hairpinMode": true,
		 "ipam": {"type": "host-local", "dataDir": "DIR/addresses", "ranges": [[{"subnet": %q}], [{"subnet": "10.88.17.0/24"}]]}},
		{"type": "portmap", "backend": %q, "snat": true, "capabilities": {"portMappings": true}}%s]}`,
		version, name, name, backend, subnet6, backend, strings.Join(append([]string{""}, more...), ","))
}

// The first IPv4 address is the first, though the configuration has IPv6 first.
func TestPrimaryAddress(t *testing.T) {
	e := newEnv(t, map[string]string{"10-net.conflist": bridgeList("0.4.0", "net", "nftables", "fd00:88:17::/64")})
	p := e.pod()
	within(t, e.add(p).IPs, "10.88.17.0/24", "fd00:88:17::/64")
	e.del(p)
}

func TestDelAfterwards(t *testing.T) { eachWay(t, testDelAfterwards) }

func testDelAfterwards(t *testing.T, way func(*Options)) {
	for _, backend := range []string{"nftables", "iptables"} {
		for _, tc := range []struct {
			name   string
			before func(e *env, p Pod)
		}{
			{"namespace gone", func(e *env, p Pod) { unpin(e.t, p) }},
			{"configuration gone", func(e *env, p Pod) { e.replace("10-net.conflist", "") }},
			{"another configuration", func(e *env, p Pod) {
				e.replace("10-net.conflist", bridgeList("1.0.0", "other", "nftables", "fd00:88:18::/64"))
			}},
			{"broken configuration", func(e *env, p Pod) { e.replace("10-net.conflist", "{") }},
			{"daemon restarted, namespace and configuration gone", func(e *env, p Pod) {
				unpin(e.t, p)
				e.replace("10-net.conflist", "")
				e.restart()
			}},
			{"cache gone", func(e *env, p Pod) { mustRemove(e.t, e.opts.CacheDir) }},
			{"cache gone, restarted", func(e *env, p Pod) { mustRemove(e.t, e.opts.CacheDir); e.restart() }},
			{"pod's name unknown", func(e *env, p Pod) {}},
		} {
			if backend == "iptables" && !strings.HasPrefix(tc.name, "namespace") {
				continue // the rules differ, and so does how they are found without a namespace
			}
			t.Run(backend+"/"+tc.name, func(t *testing.T) {
				e := newEnv(t, map[string]string{"10-net.conflist": bridgeList("1.0.0", "net", backend, "fd00:88:17::/64")}, way)
				p := e.pod()
				p.PortMappings = []*runtime.PortMapping{{ContainerPort: 80, HostPort: 18080}}
				conf, err := os.ReadFile(e.conf + "/10-net.conflist")
				if err != nil {
					t.Fatal(err)
				}
				unchanged := e.unchanged()
				e.add(p)
				tc.before(e, p)
				e.del(Pod{ID: p.ID, NetNS: p.NetNS})
				e.del(p)
				mustWrite(t, e.conf+"/10-net.conflist", string(conf), 0o644)
				unchanged()
			})
		}
	}
}

func unpin(t *testing.T, p Pod) {
	t.Helper()
	if err := host.UnpinNamespaces(strings.TrimSuffix(p.NetNS, "/net")); err != nil {
		t.Fatal(err)
	}
}

func mustRemove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// replace changes a configuration file, removes it when text is empty, and
// waits until that is noticed.
func (e *env) replace(name, text string) {
	e.t.Helper()
	before := e.Network.state.Load()
	if text == "" {
		mustRemove(e.t, e.conf+"/"+name)
	} else {
		e.write(name, text)
	}
	e.eventually("the configuration is loaded again", func() bool { return e.Network.state.Load() != before })
}

// eventually waits for what another goroutine is about to do.
func (e *env) eventually(what string, is func() bool) {
	e.t.Helper()
	if !becomes(is) {
		e.t.Fatalf("not so within 10 s: %s", what)
	}
}

// becomes waits until it is so.
func becomes(is func() bool) bool {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for !is() {
		select {
		case <-tick.C:
		case <-deadline:
			return false
		}
	}
	return true
}

func TestParallel(t *testing.T) { eachWay(t, testParallel) }

func testParallel(t *testing.T, way func(*Options)) {
	e := newEnv(t, nil, way)
	unchanged := e.unchanged()
	const count = 16
	var pods []Pod
	for range count {
		pods = append(pods, e.pod())
	}
	results := make([]*Result, count)
	var g errgroup.Group
	for i, p := range pods {
		g.Go(func() (err error) { results[i], err = e.Add(t.Context(), p); return })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	ips := map[string]bool{}
	for _, r := range results {
		for _, ip := range r.IPs {
			ips[ip] = true
		}
	}
	if len(ips) != 2*count {
		t.Errorf("%d addresses for %d pods: %v", len(ips), count, sorted(ips))
	}
	for _, p := range pods {
		g.Go(func() error { return e.Del(t.Context(), p) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	unchanged()
}

func TestAddRefuses(t *testing.T) {
	e := newEnv(t, nil)
	unchanged := e.unchanged()
	for _, tc := range []struct {
		name, want string
		kind       func(error) bool
		change     func(*Pod)
	}{
		{"port", "port_mappings[0]", errdefs.IsInvalidArgument, func(p *Pod) {
			p.PortMappings = []*runtime.PortMapping{{HostPort: 80, ContainerPort: 70000}}
		}},
		{"host address", `host_ip "x"`, errdefs.IsInvalidArgument, func(p *Pod) {
			p.PortMappings = []*runtime.PortMapping{{HostPort: 80, ContainerPort: 80, HostIp: "x"}}
		}},
		{"bandwidth", ingressAnnotation, errdefs.IsInvalidArgument, func(p *Pod) {
			p.Annotations = map[string]string{ingressAnnotation: "fast"}
		}},
		{"little bandwidth", "outside", errdefs.IsInvalidArgument, func(p *Pod) {
			p.Annotations = map[string]string{egressAnnotation: "3"}
		}},
		{"name", "CNI_ARGS", errdefs.IsInvalidArgument, func(p *Pod) { p.Name = "a;K8S_POD_UID=b" }},
		{"no namespace", "/nowhere/net", errdefs.IsNotFound, func(p *Pod) { p.NetNS = "/nowhere/net" }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := e.pod()
			tc.change(&p)
			_, err := e.Add(t.Context(), p)
			if err == nil || !tc.kind(err) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("err = %v", err)
			}
			if err := e.Del(t.Context(), p); err != nil {
				t.Error("del of what was refused:", err)
			}
		})
	}
	unchanged()
}

func TestSetPodCIDR(t *testing.T) {
	e := newEnv(t, nil)
	old := e.pod()
	oldIP := e.add(old).IPs[0]
	for _, bad := range []string{"10.0.0.0", "10.0.0.0/8,10.1.0.0/16", "10.0.0.0/31", ","} {
		if err := e.SetPodCIDR(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := errors.Join(e.SetPodCIDR(""), e.SetPodCIDR("10.88.20.0/24, fd00:88:20::/64")); err != nil {
		t.Fatal(err)
	}
	a := e.pod()
	within(t, e.add(a).IPs, "10.88.20.0/24", "fd00:88:20::/64")
	e.restart() // the kubelet does not tell it again
	b := e.pod()
	within(t, e.add(b).IPs, "10.88.20.0/24", "fd00:88:20::/64")
	serve(t, old, "tcp", ":80")
	if got := reach(t, b.NetNS, net.JoinHostPort(oldIP, "80")); got != old.ID {
		t.Errorf("a pod of the old subnet answers %q", got)
	}
	for _, p := range []Pod{old, a, b} {
		e.del(p)
	}
	bridge, err := netlink.LinkByName(e.defaultConfLocked().bridge)
	if err == nil {
		err = netlink.LinkDel(bridge)
	}
	if err != nil {
		t.Error(err)
	}
}
