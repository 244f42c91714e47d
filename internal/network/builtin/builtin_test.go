package builtin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/host"
	"berth/internal/network/builtin/nft"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// both are configurations for each backend.
func both() map[string]string {
	confs := map[string]string{}
	for _, backend := range []string{"nftables", "iptables"} {
		confs[backend] = strings.Replace(portConf(`"isGateway":true,"ipMasq":true,"ipMasqBackend":"`+backend+`",`+ipamOf(dual), `,"backend":"`+backend+`"`), "1.0.0", "1.1.0", 1)
	}
	return confs
}

// Many at once neither collide nor leave anything.
func TestManyAtOnce(t *testing.T) {
	for backend, conf := range both() {
		t.Run(backend, func(t *testing.T) {
			count := 50
			if backend == "iptables" {
				count = 10 // each executes programs
			}
			w, s := newWorld(t, conf, somePorts), sides(t)[1]
			first := w.pod()
			w.add(s, first) // makes what all share
			w.del(s, first)
			before := w.state()
			var pods []*libcni.RuntimeConf
			for range count {
				pods = append(pods, w.pod())
			}
			ips := make([]string, count)
			each := func(fn func(i int, p *libcni.RuntimeConf) error) {
				t.Helper()
				var g errgroup.Group
				for i, p := range pods {
					g.Go(func() error { w.enter(t); return fn(i, p) })
				}
				if err := g.Wait(); err != nil {
					t.Fatal(err)
				}
			}
			each(func(i int, p *libcni.RuntimeConf) error {
				r, err := w.cni(s).AddNetworkList(t.Context(), w.list, p)
				if err == nil {
					for _, ip := range r.(*types100.Result).IPs {
						ips[i] += ip.Address.String() + " "
					}
				}
				return err
			})
			seen := map[string]bool{}
			for _, ip := range ips {
				if seen[ip] || len(strings.Fields(ip)) != 2 {
					t.Errorf("address %q twice, or not two", ip)
				}
				seen[ip] = true
			}
			each(func(i int, p *libcni.RuntimeConf) error { return w.cni(s).CheckNetworkList(t.Context(), w.list, p) })
			each(func(i int, p *libcni.RuntimeConf) error { return w.cni(s).DelNetworkList(t.Context(), w.list, p) })
			w.pods = w.pods[:1]
			keep := func(l string) bool { return !strings.Contains(l, "last_reserved") }
			same(t, "left behind", lines(before, keep), lines(w.state(), keep))
		})
	}
}

// A fresh bridge that many ask for at once is made once.
func TestFreshBridgeAtOnce(t *testing.T) {
	for range 5 {
		t.Run("", func(t *testing.T) {
			w, s := newWorld(t, both()["nftables"], somePorts), sides(t)[1]
			var g errgroup.Group
			for range 8 {
				p := w.pod()
				g.Go(func() error {
					w.enter(t)
					_, err := w.cni(s).AddNetworkList(t.Context(), w.list, p)
					return errors.Join(err, w.cni(s).CheckNetworkList(t.Context(), w.list, p))
				})
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// With the namespace gone, DEL gives back everything all the same.
func TestDelWithoutNamespace(t *testing.T) {
	for backend, conf := range both() {
		for _, path := range []string{"gone", "not given"} {
			for adder := range 2 {
				t.Run(backend+", "+path+", ADD by "+sides(t)[adder].name, func(t *testing.T) {
					w, s := newWorld(t, conf, somePorts), sides(t)
					p := w.pod()
					w.add(s[adder], p)
					if err := host.UnpinNamespaces(filepath.Dir(p.NetNS)); err != nil {
						t.Fatal(err)
					}
					if path == "not given" {
						p.NetNS = ""
					}
					for range 2 {
						w.del(s[1], p)
					}
					if state := w.state(); strings.Contains(state, "pod-1\\r") || strings.Contains(state, p.ContainerID+`"`) {
						t.Errorf("left behind:\n%s", state)
					}
				})
			}
		}
	}
}

// CHECK finds what is missing.
func TestCheckFinds(t *testing.T) {
	for backend, conf := range both() {
		for name, spoil := range map[string]func(w *world, p *libcni.RuntimeConf){
			"address":   func(w *world, p *libcni.RuntimeConf) { w.inside(p, "ip", "addr", "flush", "dev", "eth0") },
			"interface": func(w *world, p *libcni.RuntimeConf) { w.inside(p, "ip", "link", "del", "eth0") },
			"bridge":    func(w *world, p *libcni.RuntimeConf) { output("ip", "link", "del", "br0") },
			"reserved": func(w *world, p *libcni.RuntimeConf) {
				mustRemove(w.t, w.dir+"/store/net/10.5.0.2", w.dir+"/store/net/fd05::2")
			},
			"host ports": func(w *world, p *libcni.RuntimeConf) { output("nft", "flush", "ruleset") },
		} {
			t.Run(backend+"/"+name, func(t *testing.T) {
				w, s := newWorld(t, conf, somePorts), sides(t)
				p := w.pod()
				w.add(s[1], p)
				if err := w.cni(s[1]).CheckNetworkList(t.Context(), w.list, p); err != nil {
					t.Fatal(err)
				}
				spoil(w, p)
				err := w.cni(s[1]).CheckNetworkList(t.Context(), w.list, p)
				if theirs := w.cni(s[0]).CheckNetworkList(t.Context(), w.list, p); err == nil || theirs == nil {
					t.Errorf("ours: %v, the reference: %v", err, theirs)
				}
			})
		}
	}
}

func (w *world) inside(p *libcni.RuntimeConf, args ...string) {
	w.t.Helper()
	if err := host.InNetNS(p.NetNS, func() error { output(args...); return nil }); err != nil {
		w.t.Fatal(err)
	}
}

func mustRemove(t testing.TB, files ...string) {
	t.Helper()
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}

// GC gives back what is of no valid attachment, and leaves other networks.
func TestGC(t *testing.T) {
	w, s := newWorld(t, both()["nftables"], nil), sides(t)[1]
	live := w.pod()
	w.add(s, live)
	other := w.parse(strings.Replace(strings.Replace(both()["nftables"], `"net"`, `"other"`, 1), "br0", "br1", 1))
	was := w.list
	w.list = other
	w.add(s, w.pod())
	w.list = was
	before := w.state()
	lost := w.pod()
	w.add(s, lost)
	// Of a pod that was lost with its namespace and with what libcni keeps.
	if err := host.UnpinNamespaces(filepath.Dir(lost.NetNS)); err != nil {
		t.Fatal(err)
	}
	mustRemove(t, w.dir+"/cache/results/net-"+lost.ContainerID+"-eth0", w.dir+"/cache/results/other-pod-2-eth0")
	w.pods = w.pods[:2]
	valid := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: live.ContainerID, IfName: "eth0"}}}
	if err := w.cni(s).GCNetworkList(t.Context(), w.list, valid); err != nil {
		t.Fatal(err)
	}
	keep := func(l string) bool { return !strings.Contains(l, "last_reserved") }
	rest := func(s string) string { _, s, _ = strings.Cut(s, "## rules"); return lines(s, keep) }
	same(t, "after GC", rest(before), rest(w.state()))
}

// What is not supported is executed, and the log says so once.
func TestExecuted(t *testing.T) {
	for _, c := range []struct {
		name, conf string
		caps       map[string]any
		key        string
		executed   string
	}{
		{"MAC check", bridgeConf(`"macspoofchk":true,` + ipamOf(v4)), nil, "macspoofchk", "bridge bridge"},
		{"no MAC check", bridgeConf(`"macspoofchk":false,` + ipamOf(v4)), nil, "", ""},
		{"unknown key", bridgeConf(`"newKey":1,` + ipamOf(v4)), nil, "newKey", "bridge bridge"},
		{"unknown key of IPAM", bridgeConf(ipamOf(v4 + `,"newKey":1`)), nil, "ipam.newKey", "host-local host-local"},
		{"unknown key of a route", bridgeConf(ipamOf(v4 + `,"routes":[{"dst":"192.0.2.0/24","newKey":1}]`)), nil, "ipam.routes.newKey", "host-local host-local"},
		{"conditions", portConf(ipamOf(v4), `,"backend":"iptables","conditionsV4":["!","-d","192.0.2.0/24"]`), somePorts, "conditionsV4", "portmap portmap"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log bytes.Buffer
			w := newWorld(t, c.conf, c.caps)
			o := newOurs(t)
			o.plugins.log = slog.New(slog.NewTextHandler(&log, nil))
			p := w.pod()
			s := side{"ours", o}
			w.add(s, p)
			w.del(s, p)
			if got := strings.Join(o.executed, " "); got != c.executed {
				t.Errorf("executed %q, want %q", got, c.executed)
			}
			want := 0
			if c.key != "" {
				want = 1
			}
			if got := log.String(); strings.Count(got, "\n") != want || !strings.Contains(got, c.key) || want == 1 && !strings.Contains(got, "network=net type=") {
				t.Errorf("log: %q", got)
			}
		})
	}
}

// Addresses may come from a program.
func TestOtherIPAM(t *testing.T) {
	hostNS(t)
	dir := t.TempDir()
	mustWrite(t, dir+"/fixed", `#!/bin/sh
cat >/dev/null
echo $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME >>`+dir+`/calls
[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.5.0.77/24","gateway":"10.5.0.1"}]}'
exit 0
`)
	if err := os.Chmod(dir+"/fixed", 0o700); err != nil {
		t.Fatal(err)
	}
	o := newOurs(t)
	w := newWorld(t, `{"cniVersion":"0.4.0","name":"net","plugins":[{"type":"bridge","bridge":"br0","isGateway":true,"ipam":{"type":"fixed"}}]}`, nil)
	cni := libcni.NewCNIConfigWithCacheDir([]string{dir}, dir+"/cache", o)
	p := w.pod()
	r, err := cni.AddNetworkList(t.Context(), w.list, p)
	if err != nil {
		t.Fatal(err)
	}
	if got := w.resultText(r); !strings.Contains(got, "10.5.0.77/24") {
		t.Error(got)
	}
	if err := errors.Join(cni.CheckNetworkList(t.Context(), w.list, p), cni.DelNetworkList(t.Context(), w.list, p)); err != nil {
		t.Fatal(err)
	}
	calls, err := os.ReadFile(dir + "/calls")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "calls", "ADD pod-1 eth0\nCHECK pod-1 eth0\nDEL pod-1 eth0\n", string(calls))
}

// A lock that another process holds is waited for no longer than the caller
// wants, and nothing is done without it.
func TestLockHeld(t *testing.T) {
	w, s := newWorld(t, bridgeConf(ipamOf(v4)), nil), sides(t)[1]
	mustWrite(t, w.dir+"/store/net/lock", "")
	f, err := os.Open(w.dir + "/store/net/lock")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	p := w.pod()
	before := w.state()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = w.cni(s).AddNetworkList(ctx, w.list, p)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "lock of the store") {
		t.Errorf("err = %v", err)
	}
	leaves(t, before, w.state())
	if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	w.add(s, p)
	w.del(s, p)
}

// The two sides share a store and its lock.
func TestBothAtOnce(t *testing.T) {
	w := newWorld(t, both()["nftables"], nil)
	s := sides(t)
	w.add(s[0], w.pod())
	var g errgroup.Group
	results := make([]types.Result, 12)
	for i := range results {
		p := w.pod()
		g.Go(func() (err error) {
			w.enter(t)
			results[i], err = w.cni(s[i%2]).AddNetworkList(t.Context(), w.list, p)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range results {
		for _, ip := range r.(*types100.Result).IPs {
			if seen[ip.Address.String()] {
				t.Errorf("%v twice", ip)
			}
			seen[ip.Address.String()] = true
		}
	}
	if n := strings.Count(rules(), "masquerade comment"); n < 13*2 {
		t.Errorf("%d rules for 13 pods:\n%s", n, rules())
	}
}

// Calls that make no sense, as a program would answer them.
func TestArguments(t *testing.T) {
	good := map[string]string{"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/none", "CNI_IFNAME": "eth0", "CNI_PATH": "/p"}
	conf := `{"cniVersion":"1.0.0","name":"net","type":"bridge"}`
	for _, c := range []struct {
		name string
		env  map[string]string
		conf string
	}{
		{"no command", map[string]string{"CNI_COMMAND": ""}, conf},
		{"unknown command", map[string]string{"CNI_COMMAND": "SWAP"}, conf},
		{"no ID", map[string]string{"CNI_CONTAINERID": ""}, conf},
		{"no namespace and no interface", map[string]string{"CNI_NETNS": "", "CNI_IFNAME": ""}, conf},
		{"bad ID", map[string]string{"CNI_CONTAINERID": "../c"}, conf},
		{"bad interface", map[string]string{"CNI_IFNAME": "a/b"}, conf},
		{"no network", nil, `{"cniVersion":"1.0.0"}`},
		{"bad network", nil, `{"cniVersion":"1.0.0","name":"../x"}`},
		{"no JSON", nil, `{`},
		{"old version for CHECK", map[string]string{"CNI_COMMAND": "CHECK"}, `{"cniVersion":"0.3.1","name":"net"}`},
		{"old version for STATUS", map[string]string{"CNI_COMMAND": "STATUS"}, conf},
		{"old version for GC", map[string]string{"CNI_COMMAND": "GC"}, conf},
		{"unknown version", nil, `{"cniVersion":"7.0.0","name":"net"}`},
		{"own namespace", map[string]string{"CNI_NETNS": "/proc/self/ns/net"}, `{"cniVersion":"1.0.0","name":"net","type":"bridge","hairpinMode":true,"promiscMode":true}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var env []string
			for key, value := range good {
				if v, changed := c.env[key]; changed {
					value = v
				}
				env = append(env, key+"="+value)
			}
			o := newOurs(t)
			_, err := o.plugins.Call(t.Context(), "bridge", []byte(c.conf), env)
			if c.name == "own namespace" {
				if !strings.HasPrefix(said(t, err), fmt.Sprint(types.ErrInvalidNetNS)) {
					t.Error(err)
				}
				return
			}
			_, theirs := (&invoke.RawExec{Stderr: &bytes.Buffer{}}).ExecPlugin(t.Context(), filepath.Join(os.Getenv(insideEnv), "bridge"), []byte(c.conf), env)
			if c.name == "no command" && theirs == nil {
				theirs = types.NewError(types.ErrInvalidEnvironmentVariables, "required env variables [CNI_COMMAND] missing", "")
			}
			if err == nil || theirs == nil {
				t.Fatalf("ours: %v, the reference: %v", err, theirs)
			}
			same(t, "error", said(t, theirs), said(t, err))
		})
	}
}

// A listing under constant change is whole.
func TestRulesWhileTheyChange(t *testing.T) {
	hostNS(t)
	var pool nft.Pool
	defer func() {
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
	}()
	table := nft.Table{Family: nft.IPv4, Name: "t"}
	add := func(chain, comment string, n int) {
		b := nft.NewBatch(table)
		b.AddTable()
		b.AddChain(nft.Chain{Name: chain})
		for range n {
			b.AddRule(nft.Rule{Chain: chain, Comment: comment})
		}
		if err := pool.With(func(c *nft.Conn) error { return c.Run(b) }); err != nil {
			t.Fatal(err)
		}
	}
	const count = 2000
	add("c", "keep", count)
	other, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		w := &world{t: t, host: other}
		w.enter(t)
		var err error
		for err == nil {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			b := nft.NewBatch(table)
			b.AddChain(nft.Chain{Name: "d"})
			b.FlushChain("d")
			b.AddRule(nft.Rule{Chain: "d", Comment: "other"})
			err = pool.With(func(c *nft.Conn) error { return c.Run(b) })
		}
		done <- err
	}()
	for range 20 {
		err := pool.With(func(c *nft.Conn) error {
			rules, err := c.Rules(table, "c")
			if err == nil && len(rules) != count {
				err = fmt.Errorf("%d rules, want %d", len(rules), count)
			}
			return err
		})
		if err != nil && !strings.Contains(err.Error(), "too often") {
			t.Error(err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Packets find their way: to the pod by a host port, and from it masqueraded.
func TestTraffic(t *testing.T) {
	for backend, conf := range both() {
		t.Run(backend, func(t *testing.T) {
			w, s := newWorld(t, conf, portsOf(portMap{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"})), sides(t)[1]
			p, q := w.pod(), w.pod()
			w.add(s, p)
			w.caps, q.CapabilityArgs = nil, nil
			w.add(s, q)
			var l net.Listener
			err := host.InNetNS(p.NetNS, func() (err error) { l, err = net.Listen("tcp", ":80"); return err })
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			for _, addr := range []string{"127.0.0.1:8080", "10.5.0.1:8080"} {
				c, err := net.DialTimeout("tcp", addr, 5*time.Second)
				if err != nil {
					t.Fatal(addr, err)
				}
				_ = c.Close()
			}
			// The answer to another pod would not pass the host, which has to
			// translate it back: iptables masquerades the whole subnet for
			// that; nftables relies on the bridge's packets being filtered.
			if _, err := os.Stat("/proc/sys/net/bridge"); err != nil && backend == "nftables" {
				return
			}
			err = host.InNetNS(q.NetNS, func() error {
				c, err := net.DialTimeout("tcp", "10.5.0.1:8080", 5*time.Second)
				if err == nil {
					err = c.Close()
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}
