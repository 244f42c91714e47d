package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// ownDaemon runs a test on a daemon of its own, on each engine, and wants the
// host back as it was after a first pod.
func ownDaemon(t *testing.T, f func(t *testing.T, d *testkit.Daemon, c *testkit.Client)) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real daemons; not with -short")
	}
	for _, engine := range []string{"embedded", "external"} {
		t.Run(engine, func(t *testing.T) {
			d := testkit.StartDaemon(t, testkit.DaemonOptions{External: engine == "external"})
			f(t, d, d.Watched(t, busybox))
		})
	}
}

// waiter is a container that ends with code when its host directory holds
// "go", and says so.
func waiter(t *testing.T, p *testkit.Pod, code int) (ctr *testkit.Container, end func()) {
	t.Helper()
	dir := t.TempDir()
	ctr = p.Container(t, busybox, []string{"sh", "-c", fmt.Sprintf("echo begun; until [ -e /signal/go ]; do sleep 0.02; done; echo last words; exit %d", code)},
		mounts(&cri.Mount{HostPath: dir, ContainerPath: "/signal"}))
	pid := pidOf(t, ctr)
	return ctr, func() {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		testkit.Until(t, 10*time.Second, func(context.Context) string {
			if state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !bytes.Contains(state, []byte(") Z ")) {
				return "the container lives: " + string(state)
			}
			return ""
		})
	}
}

// pidOf is a container's process, as its verbose status tells.
func pidOf(t *testing.T, c *testkit.Container) int {
	t.Helper()
	resp, err := c.Pod.Client().ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ PID int }
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil || info.PID == 0 {
		t.Fatalf("no pid in %v: %v", resp.Info, err)
	}
	return info.PID
}

// sleeping tells whether the command runs that nobody else has.
func sleeping(t *testing.T, c *testkit.Container, want bool) string {
	t.Helper()
	if got := strings.Contains(c.Exec(t, "ps"), "sleep 4321"); got != want {
		return fmt.Sprintf("command runs: %v, want %v", got, want)
	}
	return ""
}

// wantNumbers fails unless the log holds 1, 2, 3 … without a gap.
func wantNumbers(t *testing.T, c *testkit.Container) int {
	t.Helper()
	lines, err := testkit.ReadLog(c.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range lines {
		if l.Text != fmt.Sprint(i+1) {
			t.Fatalf("line %d of the log is %q", i+1, l.Text)
		}
	}
	return len(lines)
}

func TestKilledAndStoppedDaemons(t *testing.T) {
	ownDaemon(t, func(t *testing.T, d *testkit.Daemon, c *testkit.Client) {
		for name, end := range map[string]func() error{"killed": d.Kill, "stopped": d.Stop} {
			t.Run(name, func(t *testing.T) {
				p := c.Pod(t, func(p *cri.PodSandboxConfig) { p.Metadata.Attempt = 4 })
				shared := c.Pod(t, namespaces(func(n *cri.NamespaceOption) { n.Pid = cri.NamespaceMode_POD }))
				counts := p.Container(t, busybox, []string{"sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; usleep 500; done"},
					func(c *cri.ContainerConfig) { c.Metadata.Attempt = 7 })
				inShared := sleeper(t, shared, containerNamespaces(func(n *cri.NamespaceOption) { n.Pid = cri.NamespaceMode_POD }))
				endsMeanwhile, finish := waiter(t, p, 5)
				endsLater, finishLater := waiter(t, p, 6)
				ended := p.Container(t, busybox, []string{"sh", "-c", "exit 3"})
				endedStatus := ended.Exited(t)
				created, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"sh", "-c", "exit 4"}))
				if err != nil {
					t.Fatal(err)
				}
				before := p.Status(t)
				inExec := make(chan error, 1)
				go func() { // it ends with the daemon
					_, err := c.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: inShared.ID, Cmd: []string{"sleep", "4321"}})
					inExec <- err
				}()
				testkit.Until(t, 10*time.Second, func(context.Context) string { return sleeping(t, inShared, true) })

				if err := end(); err != nil {
					t.Fatal(err)
				}
				if err := <-inExec; err == nil {
					t.Error("a command outlasts its daemon")
				}
				down := time.Now()
				finish()
				if err := d.Start(t.Context()); err != nil {
					t.Fatal(err)
				}

				after := p.Status(t)
				if after.State != cri.PodSandboxState_SANDBOX_READY || after.Metadata.Attempt != 4 || after.CreatedAt != before.CreatedAt || after.Network.GetIp() != before.Network.GetIp() {
					t.Errorf("pod was %v, is %v", before, after)
				}
				if s := counts.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING || s.Metadata.Attempt != 7 {
					t.Errorf("running: %v", s)
				}
				s := endsMeanwhile.Exited(t)
				if s.ExitCode != 5 || s.Reason != "Error" || s.FinishedAt < down.UnixNano() || s.FinishedAt > time.Now().UnixNano() {
					t.Errorf("ended while no daemon ran, at %d: %v", down.UnixNano(), s)
				}
				if got := endsMeanwhile.Text(t); got != "begun\nlast words\n" {
					t.Errorf("its log: %q", got)
				}
				if s := ended.Status(t); s.ExitCode != 3 || s.FinishedAt != endedStatus.FinishedAt {
					t.Errorf("ended before: %v", s)
				}
				if s := created.Status(t); s.State != cri.ContainerState_CONTAINER_CREATED {
					t.Errorf("created: %v", s)
				}
				if err := created.Start(t.Context()); err != nil {
					t.Error(err)
				}
				if s := created.Exited(t); s.ExitCode != 4 {
					t.Errorf("started after: %v", s)
				}
				for _, ctr := range []*testkit.Container{counts, inShared} {
					if got := ctr.Exec(t, "echo", "exec works"); got != "exec works\n" {
						t.Errorf("got %q", got)
					}
				}
				testkit.Until(t, 10*time.Second, func(context.Context) string { return sleeping(t, inShared, false) })
				finishLater()
				if s := endsLater.Exited(t); s.ExitCode != 6 {
					t.Errorf("ended after: %v", s)
				}
				// The log goes on without a gap.
				n := wantNumbers(t, counts)
				counts.Logged(t, fmt.Sprintf(" %d\n", n+50))
				if err := counts.Stop(t.Context(), 0); err != nil {
					t.Error(err)
				}
				wantNumbers(t, counts)
				sleeper(t, p).Exec(t, "true") // new containers run in the old pod
				sleeper(t, shared, containerNamespaces(func(n *cri.NamespaceOption) { n.Pid = cri.NamespaceMode_POD })).Exec(t, "true")
			})
		}
	})
}

// As after a reboot: the records are there, what they name is gone.
func TestEverythingIsGone(t *testing.T) {
	ownDaemon(t, func(t *testing.T, d *testkit.Daemon, c *testkit.Client) {
		p := c.Pod(t)
		ctr := sleeper(t, p)
		if err := d.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := d.Devastate(); err != nil {
			t.Fatal(err)
		}
		if err := d.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := ctr.Exited(t); s.ExitCode == 0 || s.FinishedAt == 0 {
			t.Errorf("container: %v", s)
		}
		if s := p.Status(t); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("pod: %v", s)
		}
		if err := p.Remove(t.Context()); err != nil {
			t.Error(err)
		}
		// The directories that all pods share come back with the next pod.
		if err := c.WarmUp(t.Context(), busybox); err != nil {
			t.Error(err)
		}
	})
}

func TestTwoDaemonsOnOneRoot(t *testing.T) {
	ownDaemon(t, func(t *testing.T, d *testkit.Daemon, c *testkit.Client) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		cmd, err := d.Command(ctx, "serve", "--config", d.ConfigFile(), "--address", d.State+"/second.sock")
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.CombinedOutput()
		if err == nil || ctx.Err() != nil {
			t.Fatalf("the second daemon did not refuse: %v\n%s", err, out)
		}
		if text := string(out); !strings.Contains(text, d.Root) || !strings.Contains(text, fmt.Sprint(d.PID())) {
			t.Errorf("it does not say who holds the root (%s, pid %d): %s", d.Root, d.PID(), text)
		}
		c.Pod(t) // the first goes on
	})
}

// A network configuration that comes later is found without a restart.
func TestNetworkComesLater(t *testing.T) {
	if testing.Short() {
		t.Skip("needs real daemons; not with -short")
	}
	d := testkit.StartDaemon(t, testkit.DaemonOptions{NoNetwork: true})
	c, err := d.Client()
	if err != nil {
		t.Fatal(err)
	}
	ready := func(ctx context.Context) (bool, string) {
		s, err := c.RuntimeServiceClient.Status(ctx, &cri.StatusRequest{})
		if err != nil {
			return false, err.Error()
		}
		for _, condition := range s.Status.Conditions {
			if condition.Type == cri.NetworkReady {
				return condition.Status, condition.Reason + ": " + condition.Message
			}
		}
		return false, "no condition"
	}
	if ok, why := ready(t.Context()); ok || !strings.Contains(why, d.ConfDir) {
		t.Errorf("without a configuration: %v, %s", ok, why)
	}
	config := c.PodConfig(t.Name())
	if _, err := c.RunPod(t.Context(), config); err == nil || !strings.Contains(err.Error(), d.ConfDir) {
		t.Errorf("err = %v", err)
	}
	if err := d.WriteNetwork(); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, 10*time.Second, func(ctx context.Context) string {
		if ok, why := ready(ctx); !ok {
			return why
		}
		return ""
	})
	p, err := c.RunPod(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

// With no configuration at all, a fresh machine has a network.
func TestDefaultNetwork(t *testing.T) {
	if testing.Short() {
		t.Skip("needs real daemons; not with -short")
	}
	d := testkit.StartDaemon(t, testkit.DaemonOptions{NoNetwork: true, Config: map[string]any{"network.default": true}})
	c, err := d.Client()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pull(t.Context(), busybox); err != nil {
		t.Fatal(err)
	}
	a, b := c.Pod(t), c.Pod(t)
	ip := a.Status(t).Network.GetIp()
	if ip == "" {
		t.Fatalf("no address: %v", a.Status(t))
	}
	a.Container(t, busybox, []string{"sh", "-c", "mkdir /www && echo page > /www/index.html && exec httpd -f -p 80 -h /www"})
	if got := b.Output(t, busybox, []string{"sh", "-c", "for i in $(seq 50); do wget -q -O- http://" + ip + "/ && exit; sleep 0.1; done"}); got != "page\n" {
		t.Errorf("got %q", got)
	}
}
