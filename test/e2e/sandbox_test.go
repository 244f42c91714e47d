package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

func hostPort(host, container int32) func(*cri.PodSandboxConfig) {
	return func(p *cri.PodSandboxConfig) {
		p.PortMappings = append(p.PortMappings, &cri.PortMapping{HostPort: host, ContainerPort: container})
	}
}

func namespaces(set func(*cri.NamespaceOption)) func(*cri.PodSandboxConfig) {
	return func(p *cri.PodSandboxConfig) { set(p.Linux.SecurityContext.NamespaceOptions) }
}

func containerNamespaces(set func(*cri.NamespaceOption)) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext = &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}
		set(c.Linux.SecurityContext.NamespaceOptions)
	}
}

func sleeper(t *testing.T, p *testkit.Pod, change ...func(*cri.ContainerConfig)) *testkit.Container {
	t.Helper()
	return p.Container(t, busybox, []string{"sleep", "1000"}, change...)
}

func TestSandboxStatus(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		begin := time.Now()
		p := c.Pod(t, func(p *cri.PodSandboxConfig) {
			p.Metadata.Attempt = 3
			p.Labels = map[string]string{"app": "x"}
			p.Annotations = map[string]string{"note": "a=b, c"}
		})
		s := p.Status(t)
		if s.Id != p.ID || len(s.Id) != 64 || s.State != cri.PodSandboxState_SANDBOX_READY || s.RuntimeHandler != c.Handler {
			t.Errorf("got %v", s)
		}
		if diff := cmp.Diff(p.Config.Metadata.String(), s.Metadata.String()); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(p.Config.Labels, s.Labels); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(p.Config.Annotations, s.Annotations); diff != "" {
			t.Error(diff)
		}
		if at := time.Unix(0, s.CreatedAt); at.Before(begin.Add(-time.Second)) || at.After(time.Now()) {
			t.Errorf("created at %s", at)
		}
		if s.Linux.GetNamespaces().GetOptions().GetPid() != cri.NamespaceMode_CONTAINER {
			t.Errorf("namespaces: %v", s.Linux)
		}
		ip, err := netip.ParseAddr(s.Network.GetIp())
		if err != nil || !netip.MustParsePrefix(c.Daemon().Subnet).Contains(ip) {
			t.Errorf("ip %q, %v", s.Network.GetIp(), err)
		}
		if more := s.Network.GetAdditionalIps(); len(more) != 1 || !netip.MustParsePrefix(c.Daemon().Subnet6).Contains(netip.MustParseAddr(more[0].Ip)) {
			t.Errorf("no second address: %v", s.Network)
		}
		verbose, err := c.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
		if err != nil || !strings.Contains(verbose.Info["info"], `"networkCheck":"ok"`) && c.Handler != gVisor {
			t.Errorf("verbose: %v, %v", verbose, err)
		}
	})
}

func TestSandboxHasNoProcess(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		dirs, err := filepath.Glob("/sys/fs/cgroup/*" + p.Config.Linux.CgroupParent)
		if testkit.CgroupV2() {
			dirs = []string{testkit.CgroupFile("", p.Config.Linux.CgroupParent, "")}
		}
		if err != nil || len(dirs) == 0 {
			t.Fatalf("no cgroup %s: %v", p.Config.Linux.CgroupParent, err)
		}
		for _, dir := range dirs {
			if procs, err := os.ReadFile(dir + "/cgroup.procs"); err != nil || len(procs) > 0 {
				t.Errorf("%s holds processes %q, %v", dir, procs, err)
			}
		}
		images, err := c.ListImages(t.Context(), &cri.ListImagesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range images.Images {
			if strings.Contains(strings.Join(i.RepoTags, " "), "pause") {
				t.Errorf("an image nobody pulled: %v", i)
			}
		}
	})
}

func TestListPodSandbox(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		tag := testkit.Name("list")
		label := func(value string) func(*cri.PodSandboxConfig) {
			return func(p *cri.PodSandboxConfig) { p.Labels = map[string]string{"list": tag, "n": value} }
		}
		one, two := c.Pod(t, label("1")), c.Pod(t, label("2"))
		if err := two.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		state := func(s cri.PodSandboxState) *cri.PodSandboxStateValue { return &cri.PodSandboxStateValue{State: s} }
		for _, tc := range []struct {
			name   string
			filter *cri.PodSandboxFilter
			want   []string
		}{
			{"labels", &cri.PodSandboxFilter{LabelSelector: map[string]string{"list": tag}}, []string{one.ID, two.ID}},
			{"two labels", &cri.PodSandboxFilter{LabelSelector: map[string]string{"list": tag, "n": "2"}}, []string{two.ID}},
			{"ready", &cri.PodSandboxFilter{LabelSelector: map[string]string{"list": tag}, State: state(cri.PodSandboxState_SANDBOX_READY)}, []string{one.ID}},
			{"not ready", &cri.PodSandboxFilter{LabelSelector: map[string]string{"list": tag}, State: state(cri.PodSandboxState_SANDBOX_NOTREADY)}, []string{two.ID}},
			{"id", &cri.PodSandboxFilter{Id: one.ID}, []string{one.ID}},
			{"id and other label", &cri.PodSandboxFilter{Id: one.ID, LabelSelector: map[string]string{"n": "2"}}, nil},
			{"unknown id", &cri.PodSandboxFilter{Id: strings.Repeat("0", 64)}, nil},
		} {
			got, err := c.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{Filter: tc.filter})
			if err != nil {
				t.Fatal(err)
			}
			ids := map[string]bool{}
			for _, item := range got.Items {
				ids[item.Id] = true
				if item.Metadata == nil || item.CreatedAt == 0 || item.RuntimeHandler != c.Handler {
					t.Errorf("%s: %v", tc.name, item)
				}
			}
			want := map[string]bool{}
			for _, id := range tc.want {
				want[id] = true
			}
			if diff := cmp.Diff(want, ids); diff != "" {
				t.Errorf("%s: %s", tc.name, diff)
			}
		}
	})
}

func TestStopAndRemoveAreIdempotent(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		ctr := sleeper(t, p)
		for range 2 {
			if err := p.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s := p.Status(t); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("state %s", s.State)
			}
		}
		if s := ctr.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 && s.ExitCode != 143 {
			t.Errorf("container: %v", s)
		}
		for range 2 {
			if err := p.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := ctr.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := ctr.Stop(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
		}
		_, err := c.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
		testkit.WantCode(t, err, codes.NotFound, p.ID)
		_, err = c.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: ctr.ID})
		testkit.WantCode(t, err, codes.NotFound, ctr.ID)
		never := &testkit.Pod{ID: strings.Repeat("ab", 32), Config: p.Config}
		_, err = c.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: never.ID})
		testkit.WantCode(t, err, codes.OK)
		_, err = c.RemovePodSandbox(t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: never.ID})
		testkit.WantCode(t, err, codes.OK)
	})
}

func TestRemoveTakesARunningPod(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		ctr := sleeper(t, p)
		if _, err := c.RemovePodSandbox(t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
			t.Fatal(err)
		}
		_, err := c.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: ctr.ID})
		testkit.WantCode(t, err, codes.NotFound)
	})
}

// Four containers that ignore SIGTERM for two seconds each are stopped side by
// side.
func TestStopIsParallel(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		dir := t.TempDir()
		var all []*testkit.Container
		for i := range 4 {
			// Each ends only when all have been asked to.
			script := fmt.Sprintf("trap 'touch /shared/%d; until [ $(ls /shared | wc -l) = 4 ]; do sleep 0.05; done; exit 7' TERM; echo ready; while :; do sleep 0.05; done", i)
			ctr := p.Container(t, busybox, []string{"sh", "-c", script}, mounts(&cri.Mount{HostPath: dir, ContainerPath: "/shared"}))
			ctr.Logged(t, "ready")
			all = append(all, ctr)
		}
		if err := p.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, ctr := range all {
			if s := ctr.Status(t); s.ExitCode != 7 {
				t.Errorf("one waited for another: exit code %d", s.ExitCode)
			}
		}
	})
}

func TestRetryJoinsOrFindsTheSandbox(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		config := c.PodConfig(t.Name())
		if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
			t.Fatal(err)
		}
		id := testkit.SameID(t, func() (string, error) {
			p, err := c.RunPod(t.Context(), config)
			if err != nil {
				return "", err
			}
			return p.ID, nil
		})
		p, err := c.RunPod(t.Context(), config)
		if err != nil || p.ID != id {
			t.Fatalf("the call again: %v, %v", p, err)
		}
		if err := p.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestHostname(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t, func(p *cri.PodSandboxConfig) { p.Hostname = "a-name.of-its-own" })
		ctr := sleeper(t, p)
		if got := ctr.Exec(t, "sh", "-c", "hostname; cat /etc/hostname; echo $HOSTNAME"); got != "a-name.of-its-own\na-name.of-its-own\na-name.of-its-own\n" {
			t.Errorf("got %q", got)
		}
		hosts := ctr.Exec(t, "cat", "/etc/hosts")
		for _, want := range []string{"127.0.0.1", "localhost", p.Status(t).Network.Ip, "a-name.of-its-own"} {
			if !strings.Contains(hosts, want) {
				t.Errorf("/etc/hosts has no %q:\n%s", want, hosts)
			}
		}
	})
}

func TestDNS(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		given := c.Pod(t, func(p *cri.PodSandboxConfig) {
			p.DnsConfig = &cri.DNSConfig{Servers: []string{"10.0.0.53", "fd00::53"}, Searches: []string{"a.test", "b.test"}, Options: []string{"ndots:5", "edns0"}}
		})
		if got, want := sleeper(t, given).Exec(t, "cat", "/etc/resolv.conf"), "search a.test b.test\nnameserver 10.0.0.53\nnameserver fd00::53\noptions ndots:5 edns0\n"; got != want {
			t.Error(cmp.Diff(want, got))
		}
		host, err := os.ReadFile("/etc/resolv.conf")
		if err != nil {
			t.Fatal(err)
		}
		if got := sleeper(t, c.Pod(t)).Exec(t, "cat", "/etc/resolv.conf"); strings.TrimSpace(got) != strings.TrimSpace(string(host)) {
			t.Error(cmp.Diff(string(host), got))
		}
	})
}

func TestSysctls(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t, func(p *cri.PodSandboxConfig) {
			p.Linux.Sysctls = map[string]string{
				"net.ipv4.ip_unprivileged_port_start": "81", "kernel.shm_rmid_forced": "1",
				"net/ipv4/ping_group_range": "0 7", "kernel.msgmax": "9000",
			}
		})
		got := sleeper(t, p).Exec(t, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/kernel/shm_rmid_forced",
			"/proc/sys/net/ipv4/ping_group_range", "/proc/sys/kernel/msgmax")
		if diff := cmp.Diff("81\n1\n0\t7\n9000\n", got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestShm(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		a, b := sleeper(t, p), sleeper(t, p)
		a.Exec(t, "sh", "-c", "echo shared > /dev/shm/x")
		if got := b.Exec(t, "cat", "/dev/shm/x"); got != "shared\n" {
			t.Errorf("containers of a pod share /dev/shm: %q", got)
		}
		if got := a.Exec(t, "sh", "-c", "grep ' /dev/shm ' /proc/mounts"); !strings.Contains(got, "tmpfs") || !strings.Contains(got, "size=65536k") {
			t.Errorf("mount: %s", got)
		}
		if got := a.Exec(t, "stat", "-c", "%a", "/dev/shm"); got != "1777\n" {
			t.Errorf("mode %s", got)
		}
	})
}

// ns is the identity of one of a container's namespaces.
func ns(t *testing.T, c *testkit.Container, kind string) string {
	t.Helper()
	return strings.TrimSpace(c.Exec(t, "readlink", "/proc/self/ns/"+kind))
}

func TestNamespaces(t *testing.T) {
	own := func(t *testing.T, kind string) string {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	each(t, func(t *testing.T, c *testkit.Client) {
		t.Run("pod", func(t *testing.T) {
			p := c.Pod(t)
			a, b := sleeper(t, p), sleeper(t, p)
			for _, kind := range []string{"net", "ipc", "uts"} {
				if ns(t, a, kind) != ns(t, b, kind) || ns(t, a, kind) == own(t, kind) {
					t.Errorf("%s: %s, %s, the host's %s", kind, ns(t, a, kind), ns(t, b, kind), own(t, kind))
				}
			}
			if ns(t, a, "pid") == ns(t, b, "pid") || ns(t, a, "mnt") == ns(t, b, "mnt") {
				t.Error("pid or mnt is shared")
			}
			if got := a.Exec(t, "cat", "/proc/1/cmdline"); !strings.HasPrefix(got, "sleep") {
				t.Errorf("PID 1 is %q", got)
			}
		})
		t.Run("host network", func(t *testing.T) {
			supported(t, c.Handler)
			host := namespaces(func(n *cri.NamespaceOption) { n.Network = cri.NamespaceMode_NODE })
			p := c.Pod(t, host)
			a := sleeper(t, p, containerNamespaces(func(n *cri.NamespaceOption) { n.Network = cri.NamespaceMode_NODE }))
			if ns(t, a, "net") != own(t, "net") || ns(t, a, "uts") != own(t, "uts") {
				t.Errorf("net %s, uts %s", ns(t, a, "net"), ns(t, a, "uts"))
			}
			if ns(t, a, "ipc") == own(t, "ipc") {
				t.Error("ipc is the host's")
			}
			if s := p.Status(t); s.Network.GetIp() != "" || s.Linux.Namespaces.Options.Network != cri.NamespaceMode_NODE {
				t.Errorf("status: %v", s)
			}
		})
		t.Run("host IPC and PID", func(t *testing.T) {
			supported(t, c.Handler)
			set := func(n *cri.NamespaceOption) {
				n.Ipc, n.Pid = cri.NamespaceMode_NODE, cri.NamespaceMode_NODE
			}
			a := sleeper(t, c.Pod(t, namespaces(set)), containerNamespaces(set))
			if ns(t, a, "ipc") != own(t, "ipc") || ns(t, a, "pid") != own(t, "pid") {
				t.Errorf("ipc %s, pid %s", ns(t, a, "ipc"), ns(t, a, "pid"))
			}
			if ns(t, a, "net") == own(t, "net") {
				t.Error("net is the host's")
			}
		})
		t.Run("pod PID", func(t *testing.T) {
			set := func(n *cri.NamespaceOption) { n.Pid = cri.NamespaceMode_POD }
			p := c.Pod(t, namespaces(set))
			a, b := sleeper(t, p, containerNamespaces(set)), sleeper(t, p, containerNamespaces(set))
			if ns(t, a, "pid") != ns(t, b, "pid") || ns(t, a, "pid") == own(t, "pid") {
				t.Errorf("pid %s, %s", ns(t, a, "pid"), ns(t, b, "pid"))
			}
			if got := a.Exec(t, "sh", "-c", "cat /proc/1/comm"); strings.Contains(got, "sleep") {
				t.Errorf("PID 1 is %q", got)
			}
			// An orphan is reaped.
			a.Exec(t, "sh", "-c", "(sleep 0.01 & exec true)")
			testkit.Until(t, 5*time.Second, func(context.Context) string {
				if got := b.Exec(t, "ps", "-o", "stat,comm"); strings.Contains(got, "Z") {
					return "zombies:\n" + got
				}
				return ""
			})
			if s := p.Status(t); s.Linux.Namespaces.Options.Pid != cri.NamespaceMode_POD {
				t.Errorf("status: %v", s)
			}
		})
		t.Run("target PID", func(t *testing.T) {
			supported(t, c.Handler)
			p := c.Pod(t)
			a := sleeper(t, p)
			b := sleeper(t, p, containerNamespaces(func(n *cri.NamespaceOption) { n.Pid, n.TargetId = cri.NamespaceMode_TARGET, a.ID }))
			if ns(t, a, "pid") != ns(t, b, "pid") {
				t.Errorf("pid %s, %s", ns(t, a, "pid"), ns(t, b, "pid"))
			}
		})
	})
}

func TestPortMappings(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := int32(l.Addr().(*net.TCPAddr).Port)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		p := c.Pod(t, hostPort(port, 80))
		p.Container(t, busybox, []string{"sh", "-c", "mkdir -p /www && echo page > /www/index.html && exec httpd -f -p 80 -h /www"})
		for _, address := range []string{p.Status(t).Network.Ip, fmt.Sprintf("[%s]", p.Status(t).Network.AdditionalIps[0].Ip), gateway(c.Daemon().Subnet) + fmt.Sprint(":", port)} {
			wantPage(t, "http://"+address+"/index.html", "page\n")
		}
	})
}

// gateway is the bridge's own address, by which the host's ports are reached
// without routing loopback.
func gateway(subnet string) string {
	return netip.MustParsePrefix(subnet).Addr().Next().String()
}

func wantPage(t *testing.T, url, want string) {
	t.Helper()
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	testkit.Until(t, 15*time.Second, func(ctx context.Context) string {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err.Error()
		}
		resp, err := client.Do(req)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close() //nolint:errcheck // only read
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != want {
			return fmt.Sprintf("%s: %q, %v", url, body, err)
		}
		return ""
	})
}

func TestCgroupParent(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		ctr := sleeper(t, p)
		if got := ctr.Exec(t, "cat", "/proc/self/cgroup"); !strings.Contains(got, ctr.ID) {
			t.Logf("inside: %s", got) // a cgroup namespace hides it
		}
		if _, err := os.Stat(testkit.CgroupFile("memory", ctr.Cgroup(), "")); err != nil {
			t.Errorf("no cgroup of container %s below %s: %v", ctr.ID, p.Config.Linux.CgroupParent, err)
		}
	})
}

// A parent that is there before, as a kubelet makes it, stays.
func TestUpdatePodSandboxResources(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		update := func(id string, r *cri.LinuxContainerResources) error {
			_, err := c.UpdatePodSandboxResources(t.Context(), &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: id, Resources: r})
			return err
		}
		if err := update(p.ID, &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuQuota: 30000, CpuPeriod: 100000}); err != nil {
			t.Fatal(err)
		}
		for _, l := range []limit{
			{"memory", "memory.limit_in_bytes", "67108864", "memory.max", "67108864"},
			{"cpu", "cpu.cfs_quota_us", "30000", "cpu.max", "30000 100000"},
		} {
			l.check(t, p.Config.Linux.CgroupParent)
		}
		verbose, err := c.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(verbose.Info["info"], "67108864") {
			t.Errorf("the sandbox's configuration does not have the new limit: %s", verbose.Info["info"])
		}
		testkit.WantCode(t, update(p.ID, &cri.LinuxContainerResources{MemoryLimitInBytes: -1}), codes.InvalidArgument, "resources.memory_limit_in_bytes")
		testkit.WantCode(t, update("unknown", nil), codes.NotFound, "unknown")
	})
}

// A kubelet with EventedPLEG that gets a timestamp runs init containers for
// ever; test/kubelet shows it.
func TestSandboxStatusHasNoTimestamp(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		resp, err := c.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: c.Pod(t).ID})
		if err != nil {
			t.Fatal(err)
		}
		if resp.Timestamp != 0 {
			t.Errorf("timestamp %d, want none", resp.Timestamp)
		}
	})
}

func TestCgroupParentOfTheKubelet(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		config := c.PodConfig(t.Name())
		parent := testkit.CgroupFile("memory", config.Linux.CgroupParent, "")
		testkit.MakeCgroup(t, "memory", config.Linux.CgroupParent)
		p, err := c.RunPod(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		sleeper(t, p)
		if err := p.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(parent); err != nil {
			t.Errorf("the kubelet's cgroup is gone: %v", err)
		}
		if left, err := filepath.Glob(parent + "/*/cgroup.procs"); err != nil || len(left) > 0 {
			t.Errorf("left: %q, %v", left, err)
		}
	})
}

func TestStoppedPodGivesBackItsAddress(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		ip := p.Status(t).Network.Ip
		reservation := filepath.Join(c.Daemon().IPAM, c.Daemon().Bridge, ip)
		if _, err := os.Stat(reservation); err != nil {
			t.Fatal(err)
		}
		if err := p.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(reservation); err == nil && strings.HasPrefix(string(text), p.ID) {
			t.Errorf("address %s is still reserved for %s", ip, p.ID)
		}
		if _, err := os.Stat(c.Daemon().Namespaces(p.ID)); !os.IsNotExist(err) {
			t.Errorf("namespaces stay: %v", err)
		}
	})
}
