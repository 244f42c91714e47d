package config

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write golden files")

func TestDocumentIsDefault(t *testing.T) {
	got, err := Decode("default.toml", Document())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got); diff != "" {
		t.Errorf("default.toml differs from Default (-Default +file):\n%s", diff)
	}
	if err := got.Validate(); err != nil {
		t.Errorf("the defaults are not valid: %v", err)
	}
}

// A value that the document leaves out would equal the default unnoticed.
func TestDocumentHasEveryKey(t *testing.T) {
	table, have := "", map[string]bool{}
	assignment := regexp.MustCompile(`^([a-z0-9_]+) = `)
	lines := strings.Split(string(Document()), "\n")
	for i, line := range lines {
		if name, ok := strings.CutPrefix(line, "["); ok {
			table = strings.TrimSuffix(name, "]") + "."
		}
		m := assignment.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		have[generic(table+m[1])] = true
		documented := strings.HasPrefix(lines[i-1], "#") || assignment.MatchString(lines[i-1]) ||
			strings.HasPrefix(table, "runtime.handlers.")
		if !documented {
			t.Errorf("line %d: %s%s has no comment above it", i+1, table, m[1])
		}
	}
	for key, kind := range knownKeys() {
		if kind != "a table" && !have[key] {
			t.Errorf("default.toml lacks %s", key)
		}
	}
}

func TestDocumentIsACopy(t *testing.T) {
	Document()[0] = 'x'
	if Document()[0] == 'x' {
		t.Error("a caller can change the document")
	}
}

func TestLoad(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	text := `
root = "/srv/berth"
[network]
bin_dirs = ["/a", "/b"]
default = false
timeout = "1m30s"
[runtime]
default_handler = "gvisor"
handlers.gvisor.type = "io.containerd.runsc.v1"
handlers.gvisor.sandbox = "container"
handlers.gvisor.config_path = "/etc/berth/runsc.toml"
handlers.runc.binary = "/usr/bin/runc"
handlers.runc.pod_annotations = ["example.com/*"]
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Root = "/srv/berth"
	want.Network.BinDirs = []string{"/a", "/b"}
	want.Network.Default = false
	want.Network.Timeout = Duration{90 * time.Second}
	want.Runtime.DefaultHandler = "gvisor"
	want.Runtime.Handlers["gvisor"] = Handler{Type: "io.containerd.runsc.v1", Sandbox: SandboxContainer, ConfigPath: "/etc/berth/runsc.toml"}
	runc := want.Runtime.Handlers["runc"]
	runc.Binary, runc.PodAnnotations = "/usr/bin/runc", []string{"example.com/*"}
	want.Runtime.Handlers["runc"] = runc
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestLoadMissing(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none.toml")); !os.IsNotExist(unwrapAll(err)) {
		t.Errorf("a named file that is missing: %v; want it not to exist", err)
	}
	if _, err := os.Stat(DefaultPath); err == nil {
		t.Skipf("%s exists on this machine", DefaultPath)
	}
	got, err := Load("")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got); diff != "" {
		t.Errorf("no file at all: -want +got:\n%s", diff)
	}
}

func unwrapAll(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		if next := u.Unwrap(); next != nil {
			err = next
			continue
		}
		return err
	}
}

// TestMistakes holds every message in one golden file, to be read as a whole.
func TestMistakes(t *testing.T) {
	cases := []struct{ name, text string }{
		{"unknown key", "adress = \"/run/x.sock\"\n"},
		{"unknown key in a table", "[network]\nconf_dirs = \"/etc/cni/net.d\"\n"},
		{"unknown table", "[registries]\nconfig_path = \"/x\"\n"},
		{"key in the wrong table", "level = \"debug\"\n"},
		{"dotted key", "log.lvl = \"debug\"\n"},
		{"unknown key of a handler", "[runtime.handlers.kata]\ntype = \"io.containerd.kata.v2\"\nbinry = \"/x\"\n"},
		{"two unknown keys", "rot = \"/a\"\nstat = \"/b\"\n"},
		{"number for a string", "[log]\nlevel = 3\n"},
		{"string for a number", "[registry]\nmax_concurrent_downloads = \"many\"\n"},
		{"string for a list", "[network]\nbin_dirs = \"/opt/cni/bin\"\n"},
		{"list of numbers", "[network]\nbin_dirs = [1]\n"},
		{"string for a boolean", "[network]\ndefault = \"yes\"\n"},
		{"string for a table", "log = \"debug\"\n"},
		{"string for a handler", "runtime.handlers.kata = \"io.containerd.kata.v2\"\n"},
		{"key beside a handler", "[runtime.handlers]\ndefault_handler = \"runc\"\n"},
		{"number for a duration", "[network]\ntimeout = 60\n"},
		{"no duration", "[network]\ntimeout = \"soon\"\n"},
		{"number for a handler's type", "[runtime.handlers.kata]\ntype = 1\n"},
		{"syntax", "root = /var/lib/berth\n"},
		{"same key twice", "root = \"/a\"\nroot = \"/b\"\n"},
		{"relative root", "root = \"data\"\n"},
		{"root is /", "root = \"/\"\n"},
		{"URL for a socket", "address = \"unix:///run/berth/berth.sock\"\n"},
		{"long socket", "address = \"/" + strings.Repeat("a", 110) + "\"\n"},
		{"long state", "state = \"/" + strings.Repeat("a", 90) + "\"\n"},
		{"state in root", "state = \"/var/lib/berth/state\"\n"},
		{"relative containerd", "containerd.address = \"containerd.sock\"\n"},
		{"no snapshotter", "containerd.snapshotter = \"\"\n"},
		{"pinned star", "registry.pinned = [\"a/*/b\", \"*\"]\n"},
		{"no downloads", "registry.max_concurrent_downloads = 0\n"},
		{"negative duration", "registry.progress_timeout = \"-1s\"\n"},
		{"relative plugins", "network.bin_dirs = [\"/opt/cni/bin\", \"bin\"]\n"},
		{"long bridge", "network.default_bridge = \"a-much-too-long-name\"\n"},
		{"no subnet", "network.default_subnet = \"10.0.0.1\"\n"},
		{"IPv6 for IPv4", "network.default_subnet = \"fd00::/64\"\n"},
		{"host bits", "network.default_subnet = \"10.0.0.1/16\"\n"},
		{"tiny subnet", "network.default_subnet6 = \"fd00::/127\"\n"},
		{"no such handler", "runtime.default_handler = \"kata\"\n"},
		{"bad handler name", "runtime.handlers.Kata.type = \"io.containerd.kata.v2\"\n"},
		{"handler without a type", "runtime.handlers.kata.binary = \"/usr/bin/kata\"\n"},
		{"bad type", "runtime.handlers.runc.type = \"runc\"\n"},
		{"relative CDI specs", "runtime.cdi_spec_dirs = [\"/etc/cdi\", \"cdi\"]\n"},
		{"relative runtime", "runtime.handlers.runc.binary = \"runc\"\n"},
		{"sandbox", "runtime.handlers.runc.sandbox = \"vm\"\n"},
		{"sandbox of the supervisor", "runtime.handlers.berth.sandbox = \"container\"\n"},
		{"options of runc", "runtime.handlers.runc.config_path = \"/etc/runc.toml\"\n"},
		{"relative options", "[runtime.handlers.gvisor]\ntype = \"io.containerd.runsc.v1\"\nconfig_path = \"runsc.toml\"\n"},
		{"bad patterns", "runtime.handlers.runc.pod_annotations = [\"a*\", \"[\"]\nruntime.handlers.runc.container_annotations = [\"\"]\n"},
		{"driver", "cgroup.driver = \"cgroups\"\n"},
		{"slice for cgroupfs", "cgroup.driver = \"cgroupfs\"\ncgroup.parent = \"pods.slice\"\n"},
		{"path for systemd", "cgroup.driver = \"systemd\"\ncgroup.parent = \"/pods\"\n"},
		{"climbing parent", "cgroup.parent = \"/a/../..\"\n"},
		{"port missing", "stream.address = \"127.0.0.1\"\n"},
		{"port too large", "metrics.address = \"127.0.0.1:70000\"\n"},
		{"several values", "log.level = \"loud\"\nlog.format = \"xml\"\n"},
	}
	var out strings.Builder
	for _, c := range cases {
		file := filepath.Join(t.TempDir(), "c.toml")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(file)
		if err == nil {
			t.Errorf("%s: no error for\n%s", c.name, c.text)
			continue
		}
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v is not ErrInvalidArgument", c.name, err)
		}
		out.WriteString("# " + c.name + "\n" + strings.ReplaceAll(err.Error(), file, "c.toml") + "\n\n")
	}
	golden(t, "testdata/mistakes.txt", out.String())
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s (-want +got; -update rewrites it):\n%s", file, diff)
	}
}

func TestLibexec(t *testing.T) {
	dir := t.TempDir()
	mustMkdir(t, dir+"/build/libexec")
	mustMkdir(t, dir+"/usr/bin")
	mustMkdir(t, dir+"/links")
	if err := os.WriteFile(dir+"/usr/bin/berth", nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir+"/usr/bin/berth", dir+"/links/berth"); err != nil {
		t.Fatal(err)
	}
	cases := []struct{ name, configured, executable, want string }{
		{"beside the program", "", dir + "/build/berth", dir + "/build/libexec"},
		{"installed", "", dir + "/usr/bin/berth", dir + "/usr/libexec/berth"},
		{"installed, called through a link", "", dir + "/links/berth", dir + "/usr/libexec/berth"},
		{"configured", "/opt/x", dir + "/build/berth", "/opt/x"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			conf := Default()
			conf.Runtime.BinDir = c.configured
			if got := conf.Libexec(c.executable); got != c.want {
				t.Errorf("Libexec = %s, want %s", got, c.want)
			}
			if got, want := conf.CNIBinDirs(c.executable), []string{"/opt/cni/bin", c.want + "/cni"}; !cmp.Equal(got, want) {
				t.Errorf("CNIBinDirs = %v, want %v", got, want)
			}
			if got, want := conf.RuncBinary(Handler{}, c.executable), c.want+"/runc"; got != want {
				t.Errorf("RuncBinary = %s, want %s", got, want)
			}
		})
	}
}

func mustMkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestCgroupParent(t *testing.T) {
	c := Default()
	if got := c.CgroupParent("cgroupfs"); got != "/berth" {
		t.Errorf("cgroupfs: %s", got)
	}
	if got := c.CgroupParent("systemd"); got != "berth.slice" {
		t.Errorf("systemd: %s", got)
	}
	c.Cgroup.Parent = "/pods"
	if got := c.CgroupParent("cgroupfs"); got != "/pods" {
		t.Errorf("configured: %s", got)
	}
}

func TestDistance(t *testing.T) {
	cases := []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"root", "root", 0}, {"rot", "root", 1}, {"kitten", "sitting", 3}, {"ab", "ba", 2},
	}
	for _, c := range cases {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

// FuzzDecode looks for text that makes decoding or validating panic, and for
// errors that are not the user's.
func FuzzDecode(f *testing.F) {
	f.Add(Document())
	f.Add([]byte("[runtime.handlers.\"a.b\"]\nx = 1\n"))
	f.Add([]byte("a = [[1,\n2]]\n[[b]]\nc.d = 1979-05-27\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Decode("f", data)
		if err == nil {
			err = c.Validate()
		}
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v is not ErrInvalidArgument", err)
		}
	})
}
