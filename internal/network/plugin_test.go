package network

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "rewrite golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		mustWrite(t, file, got, 0o644)
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s, run with -update if this is meant (-want +got):\n%s", file, diff)
	}
}

// What a plugin that declares every capability is given, on ADD and on DEL.
func TestWhatPluginsAreGiven(t *testing.T) {
	e := newEnv(t, map[string]string{"10.conflist": `{"cniVersion":"1.0.0","name":"n","plugins":[
		{"type":"record","capabilities":{"portMappings":true,"bandwidth":true,"dns":true,"cgroupPath":true,"ipRanges":true,"io.kubernetes.cri.pod-annotations":true}}]}`})
	e.script("record", `{ env | grep ^CNI_ | sort; cat; echo; } >>DIR/given
		[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}'; exit 0`)
	if err := e.SetPodCIDR("10.88.40.0/24,fd00:88:40::/64"); err != nil {
		t.Fatal(err)
	}
	p := e.pod()
	p.PortMappings = []*runtime.PortMapping{
		{ContainerPort: 80, HostPort: 8080},
		{ContainerPort: 443},
		{Protocol: runtime.Protocol_UDP, ContainerPort: 53, HostPort: 53, HostIp: "127.0.0.1"},
	}
	p.Annotations = map[string]string{ingressAnnotation: "1M", egressAnnotation: "500k"}
	p.CgroupParent = "/kubepods/podu-1"
	p.DNS = &runtime.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"svc.local"}, Options: []string{"ndots:5"}}
	e.add(p)
	e.del(p)
	given, err := os.ReadFile(e.dir + "/given")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(strings.NewReplacer(e.dir, "DIR", plugins, "PLUGINS").Replace(string(given))) {
		if strings.HasPrefix(line, "{") {
			var out bytes.Buffer
			if err := json.Indent(&out, []byte(strings.TrimSpace(line)), "", "  "); err != nil {
				t.Fatal(err)
			}
			line = out.String() + "\n"
		}
		b.WriteString(line)
	}
	golden(t, "given.txt", b.String())
}

func TestBuiltInConflist(t *testing.T) {
	var b strings.Builder
	for _, d := range []defaultConf{
		{bridge: "berth0", subnets: []string{"10.77.0.0/16", "fd77::/64"}, dataDir: "/var/lib/berth/cni/networks", firewall: "nftables"},
		{bridge: "berth0", subnets: []string{"10.77.0.0/16"}, dataDir: "/var/lib/berth/cni/networks"},
	} {
		list, err := d.list()
		if err != nil {
			t.Fatal(err)
		}
		if !isBuiltIn(list.Bytes) || isBuiltIn([]byte(one)) {
			t.Error("its mark is not found")
		}
		var out bytes.Buffer
		if err := json.Indent(&out, list.Bytes, "", "  "); err != nil {
			t.Fatal(err)
		}
		b.WriteString(out.String() + "\n")
	}
	golden(t, "builtin.txt", b.String())
}

func TestResultAddresses(t *testing.T) {
	for _, tc := range []struct {
		name, raw string
		want      []string
	}{
		{"none names an interface", `"ips":[{"address":"10.0.0.2/24"}]`, []string{"10.0.0.2"}},
		{"only eth0 in the sandbox", `"interfaces":[{"name":"br"},{"name":"eth0","sandbox":"/ns"},{"name":"net1","sandbox":"/ns"},{"name":"eth0"}],
			"ips":[{"interface":0,"address":"10.0.0.1/24"},{"interface":2,"address":"10.9.0.2/24"},{"interface":3,"address":"10.8.0.2/24"},{"interface":1,"address":"10.0.0.2/24"}]`, []string{"10.0.0.2"}},
		{"no sandbox told", `"interfaces":[{"name":"eth0"}],"ips":[{"interface":0,"address":"10.0.0.2/24"}]`, []string{"10.0.0.2"}},
		{"IPv6 first", `"ips":[{"address":"fd00::2/64"},{"address":"10.0.0.2/24"},{"address":"fd00::3/64"},{"address":"10.0.0.3/24"}]`,
			[]string{"10.0.0.2", "fd00::2", "fd00::3", "10.0.0.3"}},
		{"IPv6 only", `"ips":[{"address":"fd00::2/64"},{"address":"fd00::3/64"}]`, []string{"fd00::2", "fd00::3"}},
		{"index out of range", `"interfaces":[{"name":"eth0"}],"ips":[{"interface":7,"address":"10.0.0.2/24"}]`, nil},
		{"none", `"interfaces":[]`, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := types100.NewResult([]byte(`{"cniVersion":"1.0.0",` + tc.raw + `}`))
			if err != nil {
				t.Fatal(err)
			}
			got, err := newResult("n", r)
			if (err == nil) != (tc.want != nil) {
				t.Fatal(err)
			}
			if err == nil {
				if diff := cmp.Diff(tc.want, got.IPs); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

func TestBounded(t *testing.T) {
	for _, tc := range []struct {
		tail bool
		in   []string
		want string
		lost int
	}{
		{false, []string{"ab", "cd"}, "abcd", 0},
		{false, []string{"abc", "def", "gh"}, "abcde", 3},
		{true, []string{"abc", "def", "gh"}, "defgh", 3},
		{true, []string{"a", "0123456789"}, "56789", 6},
		{true, []string{"abcde", "fghij"}, "fghij", 5},
	} {
		b := &bounded{max: 5, tail: tc.tail}
		for _, s := range tc.in {
			if n, err := b.Write([]byte(s)); n != len(s) || err != nil {
				t.Error(n, err)
			}
		}
		if b.String() != tc.want || b.lost != tc.lost {
			t.Errorf("%v: %q, %d lost; want %q, %d", tc.in, b.String(), b.lost, tc.want, tc.lost)
		}
	}
}

func TestWithPath(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"A=b", "^A=b PATH=/usr/local/sbin:"},
		{"PATH=/x A=b", "^PATH=/x:/usr/local/sbin:.* A=b$"},
		{"PATH=", "^PATH=/usr/local/sbin:"},
	} {
		if got := strings.Join(withPath(strings.Fields(tc.in)), " "); !regexp.MustCompile(tc.want).MatchString(got) {
			t.Errorf("%q: %q", tc.in, got)
		}
	}
}

func FuzzParseSubnets(f *testing.F) {
	for _, s := range []string{"10.0.0.0/16", "10.0.0.0/16,fd00::/64", "fd00::/64, 10.1.2.3/8", ",", "::ffff:10.0.0.0/100", "fe80::%eth0/64"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		out, err := parseSubnets(strings.Split(in, ","))
		if err != nil {
			return
		}
		again, err := parseSubnets(out)
		if diff := cmp.Diff(out, again); err != nil || diff != "" {
			t.Errorf("%q: %v\n%s", in, err, diff)
		}
		d := defaultConf{bridge: "b", subnets: out}
		if _, err := d.list(); err != nil {
			t.Errorf("%q: %v", in, err)
		}
	})
}

func FuzzRate(f *testing.F) {
	for _, s := range []string{"1M", "10Gi", "0.5k", "-1", "1e3", "9E", "1P"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		bits, _, err := rate(map[string]string{"k": in}, "k")
		if err == nil && (bits < 1000 || bits > 1e15) {
			t.Errorf("%q: %d", in, bits)
		}
	})
}

// Where plugins run in process, none need be installed, unless a configuration
// asks for more than is supported.
func TestNoPrograms(t *testing.T) {
	none := func(o *Options) { o.BinDirs = o.BinDirs[:1] }
	e := newEnv(t, nil, none)
	unchanged := e.unchanged()
	p := e.pod()
	if s := e.Status(t.Context()); !s.Ready {
		t.Error(s.Message)
	}
	e.add(p)
	e.del(p)
	unchanged()

	e = newEnv(t, map[string]string{"10.conflist": strings.Replace(bridgeList("1.0.0", "net", "nftables", "fd00:88:17::/64"), `"isGateway"`, `"macspoofchk": true, "isGateway"`, 1)}, none)
	s := e.Status(t.Context())
	_, err := e.Add(t.Context(), e.pod())
	if s.Ready || !strings.Contains(s.Message, `"bridge" is in none of`) || err == nil {
		t.Errorf("%+v, %v", s, err)
	}
}
