package builtin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"berth/internal/host"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// insideEnv marks the test process that has a network namespace of its own. Its
// value is the directory of the reference plugins.
const insideEnv = "BERTH_BUILTIN_TEST_INSIDE"

// The main thread outlives every goroutine, so no test may change its
// namespace: it stays TestMain's. Pdeathsig below asks for that too.
func init() { runtime.LockOSThread() }

// TestMain runs the tests in a network namespace and a mount namespace of their
// own; each test has another one for its host.
func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) == "" {
		os.Exit(inside())
	}
	goleak.VerifyTestMain(m)
}

func inside() int {
	dir, err := pluginDir()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
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
	root, err := filepath.Abs("../../..")
	if err != nil {
		return "", err
	}
	sources := map[string]string{"bridge": "main", "host-local": "ipam", "loopback": "main", "portmap": "meta"}
	args := []string{"build", "-C", filepath.Join(root, "tools"), "-o"}
	for _, dir := range []string{filepath.Join(root, "bin/libexec/cni"), filepath.Join(os.TempDir(), "berth-test-cni-1.9.1-all")} {
		missing := false
		for p := range sources {
			_, err := os.Stat(filepath.Join(dir, p))
			missing = missing || err != nil
		}
		if !missing {
			return dir, nil
		}
		if strings.HasPrefix(dir, os.TempDir()) {
			args = append(args, dir+"/")
			for p, kind := range sources {
				args = append(args, "github.com/containernetworking/plugins/plugins/"+kind+"/"+p)
			}
			if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
				return "", fmt.Errorf("building the reference plugins: %w\n%s", err, out)
			}
			return dir, nil
		}
	}
	panic("unreachable")
}

// hostNS makes the test's thread one of a host of its own, until the test ends.
func hostNS(t testing.TB) {
	t.Helper()
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if unix.Gettid() == unix.Getpid() {
		t.Fatal("a test is on the main thread, which outlives it")
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// side is one implementation of the plugins.
type side struct {
	name string
	exec invoke.Exec
}

// ours answers calls here, and executes what is not.
type ours struct {
	version.PluginDecoder
	plugins *Plugins
	next    invoke.Exec
	// executed are the programs that were.
	executed []string
}

func newOurs(t testing.TB) *ours {
	o := &ours{next: reference()}
	o.plugins = New(func() invoke.Exec { return o }, slog.New(slog.NewTextHandler(t.Output(), nil)))
	t.Cleanup(func() {
		if err := o.plugins.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

func (o *ours) FindInPath(plugin string, dirs []string) (string, error) {
	if o.plugins.Has(plugin) {
		return plugin, nil
	}
	return o.next.FindInPath(plugin, dirs)
}

func (o *ours) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	if kind := filepath.Base(path); o.plugins.Answers(kind, stdin) {
		return o.plugins.Call(ctx, kind, stdin, env)
	}
	o.executed = append(o.executed, filepath.Base(path))
	if !filepath.IsAbs(path) {
		path = filepath.Join(os.Getenv(insideEnv), path)
	}
	return o.next.ExecPlugin(ctx, path, stdin, env)
}

func reference() invoke.Exec { return &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}} }

func sides(t testing.TB) []side {
	return []side{{"reference", reference()}, {"ours", newOurs(t)}}
}

// world is one host with a network.
type world struct {
	t    testing.TB
	host *os.File // its namespace
	dir  string
	list *libcni.NetworkConfigList
	caps map[string]any
	pods []string // paths of their namespaces
}

// newWorld makes one. In the configuration, DIR stands for a directory.
func newWorld(t testing.TB, conf string, caps map[string]any) *world {
	t.Helper()
	hostNS(t)
	w := &world{t: t, dir: t.TempDir(), caps: caps}
	w.list = w.parse(conf)
	var err error
	if w.host, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.host.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// enter brings another goroutine to the host, for its lifetime.
func (w *world) enter(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Setns(int(w.host.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Error(err)
		runtime.Goexit()
	}
}

func (w *world) parse(conf string) *libcni.NetworkConfigList {
	w.t.Helper()
	list, err := libcni.NetworkConfFromBytes([]byte(strings.ReplaceAll(conf, "DIR", w.dir)))
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

// pod makes a namespace.
func (w *world) pod() *libcni.RuntimeConf {
	w.t.Helper()
	id := fmt.Sprintf("pod-%d", len(w.pods)+1)
	dir := filepath.Join(w.dir, "ns", id)
	if err := host.PinNamespaces(dir, host.NamespaceOptions{Net: true}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := host.UnpinNamespaces(dir); err != nil {
			w.t.Error(err)
		}
	})
	w.pods = append(w.pods, filepath.Join(dir, "net"))
	return &libcni.RuntimeConf{ContainerID: id, NetNS: filepath.Join(dir, "net"), IfName: "eth0", CapabilityArgs: w.caps}
}

func (w *world) cni(s side) *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{os.Getenv(insideEnv)}, filepath.Join(w.dir, "cache"), s.exec)
}

func (w *world) add(s side, p *libcni.RuntimeConf) types.Result {
	w.t.Helper()
	r, err := w.cni(s).AddNetworkList(w.t.Context(), w.list, p)
	if err != nil {
		w.t.Fatalf("ADD by %s: %v", s.name, err)
	}
	return r
}

func (w *world) del(s side, p *libcni.RuntimeConf) {
	w.t.Helper()
	if err := w.cni(s).DelNetworkList(w.t.Context(), w.list, p); err != nil {
		w.t.Fatalf("DEL by %s: %v", s.name, err)
	}
}

// said is a CNI error as text.
func said(t testing.TB, err error) string {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) {
		t.Fatalf("not a CNI error: %v", err)
	}
	return fmt.Sprintf("%d %s %s", e.Code, random.ReplaceAllString(e.Msg, "vethX"), e.Details)
}

func same(t testing.TB, what, a, b string) {
	t.Helper()
	if diff := cmp.Diff(strings.Split(a, "\n"), strings.Split(b, "\n")); diff != "" {
		t.Errorf("%s (-reference +ours):\n%s", what, diff)
	}
}

func lines(s string, keep func(string) bool) string {
	return strings.Join(slices.DeleteFunc(strings.Split(s, "\n"), func(l string) bool { return !keep(l) }), "\n")
}

func mustWrite(t testing.TB, file, text string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	if err == nil {
		err = os.WriteFile(file, []byte(text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
