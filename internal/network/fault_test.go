package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/internal/host"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
)

// hangs is a plugin that hangs on ADD, as does a process that it starts; it
// says so in a file.
const hangs = `cat >/dev/null
case $CNI_COMMAND in
ADD) echo waiting for the API server >&2
     sleep 1000 &
     echo $$ >DIR/hung.tmp; mv DIR/hung.tmp DIR/hung
     wait ;;
esac`

func withPlugin(name string) map[string]string {
	return map[string]string{"10-net.conflist": bridgeList("1.0.0", "net", "nftables", "fd00:88:17::/64", `{"type": "`+name+`"}`)}
}

// calm is a plugin that passes on what it got, for a first, undisturbed pod.
func (e *env) calm(name string) {
	e.script(name, `sed -n 's/.*"prevResult":\({.*}\),"type".*/\1/p'`)
}

func noProcesses(t *testing.T, id string) {
	t.Helper()
	if ps, err := host.ProcessesWithEnv("CNI_CONTAINERID", id); err != nil || len(ps) > 0 {
		t.Errorf("processes left: %v %v", ps, err)
	}
}

// alone is a configuration of one plugin, executed in no time.
func alone(name string) map[string]string {
	return map[string]string{"10.conflist": `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"` + name + `"}]}`}
}

func TestPluginHangs(t *testing.T) {
	e := newEnv(t, alone("slow"), func(o *Options) { o.Timeout = time.Second })
	unchanged := e.unchanged()
	e.script("slow", hangs)
	p := e.pod()
	_, err := e.Add(t.Context(), p)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err = %v", err)
	}
	for _, want := range []string{`CNI plugin "slow", ADD`, "shop/web", p.ID, "after ", "waiting for the API server", "see whether", "network.timeout"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
	noProcesses(t, p.ID)
	mustRemove(t, e.dir+"/hung")
	unchanged()
}

func TestCallerGoesAway(t *testing.T) {
	e := newEnv(t, withPlugin("slow"))
	unchanged := e.unchanged()
	e.script("slow", hangs)
	p := e.pod()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() { _, err := e.Add(ctx, p); done <- err }()
	e.eventually("the plugin hangs", func() bool { _, err := os.Stat(e.dir + "/hung"); return err == nil })
	// What hangs in one pod does not delay another.
	if s := e.Status(t.Context()); !s.Ready {
		t.Error(s.Message)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "caller gave up") {
		t.Errorf("err = %v", err)
	}
	noProcesses(t, p.ID)
	mustRemove(t, e.dir+"/hung")
	e.calm("slow")
	unchanged()
}

func TestPluginFails(t *testing.T) {
	for i, tc := range []struct {
		name, script string
		want         []string
		is           func(error) bool
	}{
		{"with a CNI error", `cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit; echo some noise >&2
			echo '{"cniVersion":"1.0.0","code":7,"msg":"bad subnet","details":"10.0.0.0"}'; exit 1`,
			[]string{"bad subnet; 10.0.0.0", "some noise", "shop/web"}, errdefs.IsFailedPrecondition},
		{"with try again", `cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit; echo '{"code":11,"msg":"not yet"}'; exit 1`,
			[]string{"not yet"}, errdefs.IsUnavailable},
		{"without a word", `cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit; exit 3`, []string{"exit status 3"}, errdefs.IsUnavailable},
		{"with a panic", `cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit; echo 'panic: nil map' >&2; kill -ABRT $$`,
			[]string{"panic: nil map", "aborted"}, errdefs.IsUnavailable},
		{"with text for JSON", `cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit; echo usage: none`, []string{"invalid character"}, func(error) bool { return true }},
		{"with no address", `cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit; echo '{"cniVersion":"1.0.0"}'`,
			[]string{"no address"}, errdefs.IsFailedPrecondition},
		{"with too much", `cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit; yes | head -c 3000000`, []string{"more than 1048576 bytes"}, errdefs.IsFailedPrecondition},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := alone("bad")
			if i == 0 {
				files = withPlugin("bad") // with a bridge to undo
			}
			e := newEnv(t, files)
			unchanged := e.unchanged()
			e.script("bad", tc.script)
			_, err := e.Add(t.Context(), e.pod())
			if err == nil || !tc.is(err) {
				t.Fatalf("err = %v", err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			unchanged()
		})
	}
}

// A failing DEL after a failed ADD: the error tells of both, and Del finishes.
func TestCleanupFails(t *testing.T) {
	e := newEnv(t, withPlugin("bad"))
	unchanged := e.unchanged()
	e.script("bad", `cat >/dev/null; echo "{\"code\":11,\"msg\":\"no $CNI_COMMAND\"}"; exit 1`)
	p := e.pod()
	_, err := e.Add(t.Context(), p)
	var said *types.Error
	if !errors.As(err, &said) || !strings.Contains(err.Error(), "no ADD") || !strings.Contains(err.Error(), "no DEL") {
		t.Errorf("err = %v", err)
	}
	if err := e.Del(t.Context(), p); err == nil {
		t.Error("a DEL that failed was reported done")
	}
	e.calm("bad")
	e.replace("10-net.conflist", bridgeList("1.0.0", "other", "nftables", "fd00:88:18::/64"))
	e.del(p)
	e.replace("10-net.conflist", strings.ReplaceAll(withPlugin("bad")["10-net.conflist"], "DIR", e.dir))
	unchanged()
}

func TestPluginMissing(t *testing.T) {
	e := newEnv(t, withPlugin("absent"))
	_, err := e.Add(t.Context(), e.pod())
	s := e.Status(t.Context())
	for _, text := range []string{fmt.Sprint(err), s.Message} {
		if !strings.Contains(text, `"absent" is in none of`) || !strings.Contains(text, e.bin) {
			t.Error(text)
		}
	}
	if s.Ready || s.Reason != "NetworkPluginNotReady" || !errdefs.IsFailedPrecondition(err) {
		t.Errorf("%+v, %v", s, err)
	}
}

// A plugin that is just being installed is tried again.
func TestPluginBeingWritten(t *testing.T) {
	e := newEnv(t, alone("late"))
	e.script("late", `cat >/dev/null; echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}'`)
	f, err := os.OpenFile(e.bin+"/late", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(3*busyDelay, func() { _ = f.Close() })
	p := e.pod()
	within(t, e.add(p).IPs, "10.1.2.0/24")
	e.del(p)
}

// A plugin may leave a daemon of its own that holds its output.
func TestPluginLeavesProcess(t *testing.T) {
	e := newEnv(t, alone("leaves"))
	e.script("leaves", `cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit; echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}'
		sleep 1000 & echo $! >DIR/left`)
	p := e.pod()
	within(t, e.add(p).IPs, "10.1.2.0/24")
	left, err := os.ReadFile(e.dir + "/left")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(left)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Error("the plugin's process was killed:", err)
	}
	e.del(p)
}

// victim is a daemon that hangs in an ADD until it is killed.
func victim() {
	dir, id, ok := strings.Cut(os.Getenv(victimEnv), ":")
	if !ok {
		os.Exit(2)
	}
	n, err := New(Options{
		ConfDir: dir + "/net.d", BinDirs: []string{dir + "/bin", os.Getenv(insideEnv)}, CacheDir: dir + "/cni",
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err == nil {
		_, err = n.Add(context.Background(), Pod{ID: id, NetNS: filepath.Join(dir, "ns", id, "net"), Name: "web", Namespace: "shop"})
	}
	fmt.Fprintln(os.Stderr, "the victim was not killed:", err)
	os.Exit(1)
}

// A daemon is killed in an ADD and its plugin goes on; meanwhile the
// configuration changes. The next daemon finds all.
func TestDaemonKilledInAdd(t *testing.T) { eachWay(t, testDaemonKilledInAdd) }

func testDaemonKilledInAdd(t *testing.T, way func(*Options)) {
	e := newEnv(t, withPlugin("slow"), way)
	e.settleGrace = 50 * time.Millisecond
	unchanged := e.unchanged()
	e.script("slow", hangs)
	p := e.pod()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victimEnv+"="+e.dir+":"+p.ID)
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	e.eventually("the plugin hangs", func() bool { _, err := os.Stat(e.dir + "/hung"); return err == nil })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if ps, _ := host.ProcessesWithEnv("CNI_CONTAINERID", p.ID); len(ps) == 0 {
		t.Fatal("the plugin did not outlive its daemon: this test tests nothing")
	}
	mustRemove(t, e.dir+"/hung")
	e.calm("slow")
	conf := strings.ReplaceAll(withPlugin("slow")["10-net.conflist"], "DIR", e.dir)
	e.replace("10-net.conflist", "")
	if err := e.Settle(t.Context(), p.ID); err != nil {
		t.Fatal(err)
	}
	noProcesses(t, p.ID)
	e.del(Pod{ID: p.ID, NetNS: p.NetNS})
	e.write("10-net.conflist", conf)
	unchanged()
}

// Settle waits for a plugin that ends by itself, and takes no notice of others.
func TestSettleWaits(t *testing.T) {
	e := newEnv(t, nil)
	run := func(id, script string) *exec.Cmd {
		cmd := exec.Command("sh", "-c", script)
		cmd.Env = []string{"CNI_CONTAINERID=" + id, "PATH=" + os.Getenv("PATH")}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	mine, other := run("mine", "sleep 0.2; touch "+e.dir+"/through"), run("other", "exec sleep 1000")
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	if err := e.Settle(t.Context(), "mine"); err != nil {
		t.Fatal(err)
	}
	if err := mine.Wait(); err != nil {
		t.Error("the plugin was cut:", err)
	}
	if _, err := os.Stat(e.dir + "/through"); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := e.Settle(ctx, "other"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err = %v", err)
	}
	if err := syscall.Kill(other.Process.Pid, 0); err != nil {
		t.Error("a caller without time got a plugin killed:", err)
	}
}
