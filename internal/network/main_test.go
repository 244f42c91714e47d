package network

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"berth/internal/host"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
)

const (
	// insideEnv marks the test process that has a network namespace of its own.
	insideEnv = "BERTH_NETWORK_TEST_INSIDE"
	// victimEnv makes the test binary a daemon that is to be killed.
	victimEnv = "BERTH_NETWORK_TEST_VICTIM"
)

// plugins is the directory of the reference plugins.
var plugins string

func init() { runtime.LockOSThread() } // TestMain stays on the main thread: Pdeathsig below asks for it

// TestMain runs the tests in a network namespace and a mount namespace of their
// own: bridges, rules and sysctls of the machine stay as they are, however the
// tests end, and several runs do not meet.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(victimEnv) != "":
		victim()
		return
	case os.Getenv(insideEnv) == "":
		os.Exit(inside())
	}
	runtime.UnlockOSThread()
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// inside runs this test binary again in its namespaces.
func inside() int {
	dir, err := pluginDir()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		Pdeathsig:    syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState == nil {
			fmt.Fprintln(os.Stderr, "tests of this package need root:", err)
		}
		return 1
	}
	return 0
}

// pluginDir is where `make build` puts the plugins. Without it they are built.
func pluginDir() (string, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "bin/libexec/cni")
	missing := func(dir string) bool {
		for _, p := range []string{"bridge", "host-local", "portmap"} {
			if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
				return true
			}
		}
		return false
	}
	if !missing(dir) {
		return dir, nil
	}
	dir = filepath.Join(os.TempDir(), "berth-test-cni-1.9.1")
	if !missing(dir) {
		return dir, nil
	}
	const from = "github.com/containernetworking/plugins/plugins/"
	cmd := exec.Command("go", "build", "-C", filepath.Join(root, "tools"), "-o", dir+"/",
		from+"main/bridge", from+"ipam/host-local", from+"meta/portmap")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the reference plugins: %w\n%s", err, out)
	}
	return dir, nil
}

func prepare() error {
	plugins = os.Getenv(insideEnv)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// env is one test's daemon and its surroundings.
type env struct {
	*Network
	t              *testing.T
	dir, conf, bin string // conf: ConfDir; bin: for plugins of the test's own
	opts           Options
	pods           int
}

// newEnv starts a Network whose configuration is files, name to text. In a
// text, DIR stands for the test's directory.
func newEnv(t *testing.T, files map[string]string, change ...func(*Options)) *env {
	t.Helper()
	dir := t.TempDir()
	e := &env{t: t, dir: dir, conf: filepath.Join(dir, "net.d"), bin: filepath.Join(dir, "bin")}
	e.opts = Options{
		ConfDir:  e.conf,
		BinDirs:  []string{e.bin, plugins},
		CacheDir: filepath.Join(dir, "cni"),
		Default:  len(files) == 0, DefaultBridge: "bt0", DefaultSubnet: "10.88.16.0/24", DefaultSubnet6: "fd00:88:16::/64",
		InProcess: true,
		Log:       slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, c := range change {
		c(&e.opts)
	}
	for name, text := range files {
		e.write(name, text)
	}
	e.start()
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error("close:", err)
		}
		removeBridges(t)
	})
	return e
}

// eachWay runs a test with plugins in process, and with plugins as programs.
func eachWay(t *testing.T, test func(t *testing.T, way func(*Options))) {
	for name, inProcess := range map[string]bool{"in process": true, "programs": false} {
		t.Run(name, func(t *testing.T) { test(t, func(o *Options) { o.InProcess = inProcess }) })
	}
}

func (e *env) start() {
	e.t.Helper()
	n, err := New(e.opts)
	if err != nil {
		e.t.Fatal(err)
	}
	e.Network = n
}

// restart stands for a new daemon on the same directories.
func (e *env) restart() {
	e.t.Helper()
	if err := e.Close(); err != nil {
		e.t.Fatal(err)
	}
	e.start()
}

func (e *env) write(name, text string) {
	e.t.Helper()
	mustWrite(e.t, filepath.Join(e.conf, name), strings.ReplaceAll(text, "DIR", e.dir), 0o644)
}

// script makes a plugin of the test's own.
func (e *env) script(name, text string) {
	e.t.Helper()
	mustWrite(e.t, filepath.Join(e.bin, name), "#!/bin/sh\n"+strings.ReplaceAll(text, "DIR", e.dir)+"\n", 0o755)
}

func mustWrite(t testing.TB, file, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// pod makes a network namespace and the pod that is to have it.
func (e *env) pod() Pod {
	e.t.Helper()
	e.pods++
	id := fmt.Sprintf("%064x", e.pods)
	return newPod(e.t, e.dir, id)
}

func newPod(t testing.TB, dir, id string) Pod {
	t.Helper()
	ns := filepath.Join(dir, "ns", id)
	if err := host.PinNamespaces(ns, host.NamespaceOptions{Net: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.UnpinNamespaces(ns); err != nil {
			t.Error(err)
		}
	})
	return Pod{ID: id, NetNS: filepath.Join(ns, "net"), Name: "web", Namespace: "shop", UID: "u-1"}
}

func (e *env) add(p Pod) *Result {
	e.t.Helper()
	r, err := e.Add(e.t.Context(), p)
	if err != nil {
		e.t.Fatal(err)
	}
	return r
}

func (e *env) del(p Pod) {
	e.t.Helper()
	if err := e.Del(e.t.Context(), p); err != nil {
		e.t.Fatal(err)
	}
}

// unchanged compares what the machine holds with what it holds when the
// function that it returns is called. The kernel takes down what is in a
// namespace some time after that is gone, so a difference must stay.
func (e *env) unchanged() func() {
	e.t.Helper()
	before := e.state()
	return func() {
		e.t.Helper()
		var after string
		if !becomes(func() bool { after = e.state(); return after == before }) {
			e.t.Errorf("left behind or lost (-before +after):\n%s", cmp.Diff(before, after))
		}
	}
}

// state is what may stay of a pod, as text. Bridges, and the chains that all
// pods share, are left out: plugins never remove them.
func (e *env) state() string {
	e.t.Helper()
	var b strings.Builder
	for _, cmd := range []string{
		"ip -br link | grep -v ^bt | sed 's/@.*//; s/ .*//' | sort",
		"ip route; ip -6 route",
		"nft -s list ruleset | grep -E 'id: |dnat|10[.]88|fd00:88'",
		"iptables-save -t nat | grep -E 'CNI-(DN-)?[0-9a-f]{20}|10[.]88'",
		"ip6tables-save -t nat | grep -E 'CNI-(DN-)?[0-9a-f]{20}|fd00:88'",
		"findmnt -rno TARGET | grep " + e.dir + "/cni",
		"cd " + e.dir + "; find . \\( -path ./ns -o -path ./bin \\) -prune -o -type f ! -name lock ! -name 'last_reserved_ip.*' -print | sort",
	} {
		out, _ := exec.Command("sh", "-c", cmd).Output() // grep fails where it finds nothing
		for line := range strings.Lines(string(out)) {
			if !strings.Contains(line, " dev bt") { // not a bridge's route
				b.WriteString(line)
			}
		}
		b.WriteString("---\n")
	}
	return b.String()
}

// removeBridges takes away what the bridge plugin leaves.
func removeBridges(t testing.TB) {
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "bridge" {
			if err := netlink.LinkDel(l); err != nil {
				t.Error(err)
			}
		}
	}
}

// within tells whether each address is in the prefix of the same place.
func within(t *testing.T, ips []string, prefixes ...string) {
	t.Helper()
	if len(ips) != len(prefixes) {
		t.Fatalf("addresses %v, want one of each of %v", ips, prefixes)
	}
	for i, ip := range ips {
		if a, err := netip.ParseAddr(ip); err != nil || !netip.MustParsePrefix(prefixes[i]).Contains(a) {
			t.Errorf("address %s is not in %s", ip, prefixes[i])
		}
	}
}

func sorted(m map[string]bool) []string { return slices.Sorted(maps.Keys(m)) }

func mustRename(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
