package network

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

const (
	one    = `{"cniVersion":"1.0.0","name":"one","plugins":[{"type":"bridge"}]}`
	two    = `{"cniVersion":"1.0.0","name":"two","plugins":[{"type":"bridge"}]}`
	single = `{"cniVersion":"0.4.0","name":"single","type":"portmap"}`
)

func TestConfiguration(t *testing.T) {
	for _, tc := range []struct {
		name      string
		files     map[string]string
		builtIn   bool
		want, err string
	}{
		{name: "first of three", files: map[string]string{"20-b.conflist": two, "10-a.conflist": one, "30-c.conf": single}, want: "one"},
		{name: "a single plugin", files: map[string]string{"10-a.conf": single, "20-b.conflist": two}, want: "single"},
		{name: "json", files: map[string]string{"10-a.json": single}, want: "single"},
		{name: "other files", files: map[string]string{"00-README": "x", "01.conflist.bak": "x", "10-a.conflist": one}, builtIn: true, want: "one"},
		{name: "none", err: "no CNI configuration in DIR"},
		{name: "none, built in", builtIn: true, want: "bt0"},
		{name: "only others, built in", files: map[string]string{"README": "x"}, builtIn: true, want: "bt0"},
		{name: "broken first", files: map[string]string{"10-a.conflist": "{", "20-b.conflist": two}, builtIn: true, err: "CNI configuration DIR/10-a.conflist is broken"},
		{name: "broken second", files: map[string]string{"10-a.conflist": one, "20-b.conflist": "{"}, want: "one"},
		{name: "no name", files: map[string]string{"10-a.conf": `{"type":"x"}`}, err: "no name"},
		{name: "no plugins", files: map[string]string{"10-a.conflist": `{"name":"x"}`}, err: "no plugin"},
		{name: "a plugin without type", files: map[string]string{"10-a.conflist": `{"name":"x","plugins":[{}]}`}, err: "missing 'type'"},
		{name: "a list for a plugin", files: map[string]string{"10-a.conf": one}, err: "missing 'type'"},
		{name: "empty", files: map[string]string{"10-a.conflist": ""}, err: "is broken"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEnv(t, tc.files, func(o *Options) { o.Default = tc.builtIn })
			s := e.Status(t.Context())
			if tc.err == "" {
				if !s.Ready || s.Network != tc.want || s.Message+s.Reason != "" || len(s.Conflist) == 0 {
					t.Errorf("%+v", s)
				}
				return
			}
			if want := strings.ReplaceAll(tc.err, "DIR", e.conf); s.Ready || s.Reason != ReasonNotReady || !strings.Contains(s.Message, want) {
				t.Errorf("%+v, want %q", s, want)
			}
			_, err := e.Add(t.Context(), Pod{ID: "x", NetNS: "/x"})
			if !errdefs.IsUnavailable(err) && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("add: %v", err)
			}
			if err := e.Del(t.Context(), Pod{ID: "x"}); err != nil {
				t.Errorf("del: %v", err)
			}
		})
	}
}

// CNI 1.1 lets plugins live in files beside the list; what is kept for DEL has
// them inside.
func TestPluginsBesideTheList(t *testing.T) {
	e := newEnv(t, map[string]string{
		"10-a.conflist":   `{"cniVersion":"1.1.0","name":"apart","plugins":[{"type":"bridge"}]}`,
		"apart/20-b.conf": `{"type":"portmap"}`,
	})
	list, err := libcni.NetworkConfFromBytes(e.Status(t.Context()).Conflist)
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, p := range list.Plugins {
		types = append(types, p.Network.Type)
	}
	if diff := cmp.Diff([]string{"bridge", "portmap"}, types); diff != "" {
		t.Error(diff)
	}
}

func TestWatch(t *testing.T) {
	root := t.TempDir()
	conf := filepath.Join(root, "etc", "cni", "net.d")
	e := newEnv(t, map[string]string{}, func(o *Options) { o.ConfDir, o.Default = conf, false })
	network := func(want string) {
		t.Helper()
		e.eventually("network "+want, func() bool { return e.Status(t.Context()).Network == want })
	}
	network("")
	mustWrite(t, conf+"/10-a.conflist", one, 0o644)
	network("one")
	mustWrite(t, conf+"/05-b.conflist", "{", 0o644) // half written …
	network("")
	mustWrite(t, conf+"/05-b.conflist", two, 0o644) // … and now whole
	network("two")
	mustWrite(t, conf+"/.tmp", single, 0o644)
	if err := os.Rename(conf+"/.tmp", conf+"/01-c.conf"); err != nil {
		t.Fatal(err)
	}
	network("single")
	mustRemove(t, conf+"/01-c.conf")
	network("two")
	mustRemove(t, root+"/etc")
	network("")
	mustWrite(t, conf+"/10-a.conflist", one, 0o644)
	network("one")
	if err := os.Rename(root+"/etc/cni", root+"/etc/old"); err != nil {
		t.Fatal(err)
	}
	network("")
	mustWrite(t, root+"/new/net.d/10.conflist", two, 0o644)
	if err := os.Rename(root+"/new", root+"/etc/cni"); err != nil {
		t.Fatal(err)
	}
	network("two")
	mustWrite(t, root+"/etc/old/net.d/10-a.conflist", single, 0o644) // nobody's any more
	mustWrite(t, conf+"/00.conflist", one, 0o644)
	network("one")
}

func TestStatusOfPlugins(t *testing.T) {
	e := newEnv(t, map[string]string{"10.conflist": `{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"agent"}]}`})
	e.script("agent", `cat >/dev/null; echo $CNI_COMMAND >>DIR/calls; echo '{"code":50,"msg":"the agent is not up"}'; exit 1`)
	for range 3 {
		if s := e.Status(t.Context()); s.Ready || !strings.Contains(s.Message, "the agent is not up") {
			t.Errorf("%+v", s)
		}
	}
	calls, err := os.ReadFile(e.dir + "/calls")
	if err != nil || string(calls) != "STATUS\n" {
		t.Errorf("executed %q, %v", calls, err)
	}
	e.script("agent", `cat >/dev/null`)
	e.restart()
	if s := e.Status(t.Context()); !s.Ready {
		t.Errorf("%+v", s)
	}
}

// Two daemons never share the built-in network's bridge or subnet.
func TestClaims(t *testing.T) {
	first := newEnv(t, nil)
	for name, change := range map[string]func(*Options){
		"bt0":           func(o *Options) { o.DefaultSubnet, o.DefaultSubnet6 = "10.88.30.0/24", "" },
		"10.88.16.0/24": func(o *Options) { o.DefaultBridge = "bt1" },
	} {
		second := newEnv(t, nil, change)
		s := second.Status(t.Context())
		if s.Ready || !strings.Contains(s.Message, name+" is used by another daemon") || !strings.Contains(s.Message, "network.default_bridge") {
			t.Errorf("%+v", s)
		}
	}
	third := newEnv(t, nil)
	if third.Status(t.Context()).Ready {
		t.Error("third is ready too")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if s := third.Status(t.Context()); !s.Ready {
		t.Errorf("the first has gone: %+v", s)
	}
	// A node that gets a configuration of its own needs the names no more.
	third.replace("10.conflist", one)
	if s := newEnv(t, nil).Status(t.Context()); !s.Ready {
		t.Errorf("%+v", s)
	}
}

func TestNewRefuses(t *testing.T) {
	for want, change := range map[string]func(*Options){
		`"net.d" is not absolute`:   func(o *Options) { o.ConfDir = "net.d" },
		`"" is not absolute`:        func(o *Options) { o.CacheDir = "" },
		"no directory of plugins":   func(o *Options) { o.BinDirs = nil },
		"longer than 15":            func(o *Options) { o.DefaultBridge = strings.Repeat("b", 16) },
		`"10.0.0.0" is no subnet`:   func(o *Options) { o.DefaultSubnet = "10.0.0.0" },
		"one subnet of each family": func(o *Options) { o.DefaultSubnet6 = "10.1.0.0/16" },
		`"fd00::/127" has no room`:  func(o *Options) { o.DefaultSubnet6 = "fd00::/127" },
	} {
		o := Options{ConfDir: "/nowhere/net.d", CacheDir: "/nowhere/cni", BinDirs: []string{"/nowhere"}}
		change(&o)
		if _, err := New(o); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestOverlapIsTold(t *testing.T) {
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "elsewhere"}, PeerName: "elsepeer"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Error(err)
		}
	}()
	d := defaultConf{bridge: "bt0", subnets: []string{"10.88.16.0/24"}}
	if got := overlaps(d); len(got) > 0 {
		t.Error(got)
	}
	addr, err := netlink.ParseAddr("10.88.0.1/16")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.AddrAdd(veth, addr), netlink.LinkSetUp(veth)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"10.88.0.0/16 dev elsewhere"}, overlaps(d)); diff != "" {
		t.Error(diff)
	}
}
