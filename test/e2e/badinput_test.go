package e2e

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

const unknown = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"

func TestUnknownIDs(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ctx := t.Context()
		for name, call := range map[string]func() error{
			"PodSandboxStatus": func() error {
				_, err := c.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: unknown})
				return err
			},
			"CreateContainer": func() error {
				_, err := c.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: unknown, Config: testkit.ContainerConfig(busybox, []string{"true"}), SandboxConfig: c.PodConfig("x")})
				return err
			},
			"StartContainer": func() error {
				_, err := c.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: unknown})
				return err
			},
			"ContainerStatus": func() error {
				_, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: unknown})
				return err
			},
			"UpdateContainerResources": func() error {
				_, err := c.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: unknown, Linux: &cri.LinuxContainerResources{CpuShares: 2}})
				return err
			},
			"ReopenContainerLog": func() error {
				_, err := c.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: unknown})
				return err
			},
			"ExecSync": func() error {
				_, err := c.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: unknown, Cmd: []string{"true"}})
				return err
			},
			"Exec": func() error {
				_, err := c.Exec(ctx, &cri.ExecRequest{ContainerId: unknown, Cmd: []string{"true"}, Stdout: true})
				return err
			},
			"Attach": func() error {
				_, err := c.Attach(ctx, &cri.AttachRequest{ContainerId: unknown, Stdout: true})
				return err
			},
			"ContainerStats": func() error {
				_, err := c.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: unknown})
				return err
			},
		} {
			t.Run(name, func(t *testing.T) { testkit.WantCode(t, call(), codes.NotFound, unknown) })
		}
		for name, call := range map[string]func() error{
			"StopContainer": func() error {
				_, err := c.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: unknown})
				return err
			},
			"RemoveContainer": func() error {
				_, err := c.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: unknown})
				return err
			},
		} {
			t.Run(name, func(t *testing.T) { testkit.WantCode(t, call(), codes.OK) })
		}
	})
}

func TestBadSandboxes(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		for _, tc := range []struct {
			name    string
			change  func(*cri.PodSandboxConfig)
			handler string
			code    codes.Code
			names   string
		}{
			{name: "no metadata", change: func(p *cri.PodSandboxConfig) { p.Metadata = nil }, names: "metadata"},
			{name: "no name", change: func(p *cri.PodSandboxConfig) { p.Metadata.Name = "" }, names: "metadata.name"},
			{name: "no uid", change: func(p *cri.PodSandboxConfig) { p.Metadata.Uid = "" }, names: "metadata.uid"},
			{name: "no namespace", change: func(p *cri.PodSandboxConfig) { p.Metadata.Namespace = "" }, names: "metadata.namespace"},
			{name: "relative log directory", change: func(p *cri.PodSandboxConfig) { p.LogDirectory = "logs" }, names: "log_directory"},
			{name: "bad sysctl", change: func(p *cri.PodSandboxConfig) { p.Linux.Sysctls = map[string]string{"no.such.sysctl": "1"} }, names: "no.such.sysctl"},
			{name: "sysctl of the host", change: func(p *cri.PodSandboxConfig) { p.Linux.Sysctls = map[string]string{"vm.swappiness": "1"} }, names: "vm.swappiness"},
			{name: "bad value of a sysctl", change: func(p *cri.PodSandboxConfig) {
				p.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "many"}
			}, names: "ip_unprivileged_port_start"},
			{name: "bad port", change: hostPort(70000, 80), names: "port_mappings"},
			{name: "negative port", change: hostPort(80, -1), names: "port_mappings"},
			{name: "relative cgroup parent", change: func(p *cri.PodSandboxConfig) { p.Linux.CgroupParent = "../../x" }, names: "cgroup_parent"},
			{name: "bad DNS server", change: func(p *cri.PodSandboxConfig) { p.DnsConfig = &cri.DNSConfig{Servers: []string{"not an address"}} }, names: "dns_config"},
			{name: "hostname too long", change: func(p *cri.PodSandboxConfig) { p.Hostname = strings.Repeat("h", 100) }, names: "hostname"},
			{name: "unknown handler", change: func(*cri.PodSandboxConfig) {}, handler: "kata", code: codes.InvalidArgument, names: "berth"},
		} {
			t.Run(tc.name, func(t *testing.T) {
				config := c.PodConfig(t.Name(), tc.change)
				handler := c.Handler
				if tc.handler != "" {
					handler = tc.handler
				}
				if config.LogDirectory != "" && config.LogDirectory[0] == '/' {
					if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				if tc.code == codes.OK {
					tc.code = codes.InvalidArgument
				}
				resp, err := c.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
				testkit.WantCode(t, err, tc.code, tc.names)
				if err == nil {
					_, _ = c.RemovePodSandbox(t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: resp.PodSandboxId}) // the test failed already
				}
				left, err := c.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: config.Labels}})
				if err != nil || len(left.Items) > 0 {
					t.Errorf("left behind: %v, %v", left, err)
				}
			})
		}
		_, err := c.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{RuntimeHandler: c.Handler})
		testkit.WantCode(t, err, codes.InvalidArgument, "config")
	})
}

func TestBadContainers(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		resources := func(set func(*cri.LinuxContainerResources)) func(*cri.ContainerConfig) {
			return func(c *cri.ContainerConfig) {
				c.Linux.Resources = &cri.LinuxContainerResources{}
				set(c.Linux.Resources)
			}
		}
		for _, tc := range []struct {
			name   string
			change func(*cri.ContainerConfig)
			code   codes.Code
			names  string
		}{
			{name: "no metadata", change: func(c *cri.ContainerConfig) { c.Metadata = nil }, names: "metadata"},
			{name: "no name", change: func(c *cri.ContainerConfig) { c.Metadata.Name = "" }, names: "metadata.name"},
			{name: "no image", change: func(c *cri.ContainerConfig) { c.Image = nil }, names: "image"},
			{name: "image not there", change: func(c *cri.ContainerConfig) { c.Image.Image = "none.test/none:1" }, code: codes.NotFound, names: "none.test/none:1"},
			{name: "bad digest", change: func(c *cri.ContainerConfig) { c.Image.Image = "none.test/none@sha256:12" }, names: "sha256:12"},
			{name: "relative mount", change: mounts(&cri.Mount{HostPath: "/tmp", ContainerPath: "data"}), names: "mounts[0].container_path"},
			{name: "relative host path", change: mounts(&cri.Mount{HostPath: "tmp", ContainerPath: "/data"}), names: "mounts[0].host_path"},
			{name: "no host path", change: mounts(&cri.Mount{ContainerPath: "/data"}), names: "mounts[0]"},
			{name: "relative working directory", change: func(c *cri.ContainerConfig) { c.WorkingDir = "x" }, names: "working_dir"},
			{name: "log path that leaves", change: func(c *cri.ContainerConfig) { c.LogPath = "../x.log" }, names: "log_path"},
			{name: "absolute log path", change: func(c *cri.ContainerConfig) { c.LogPath = "/x.log" }, names: "log_path"},
			{name: "bad capability", change: security(func(s *cri.LinuxContainerSecurityContext) {
				s.Capabilities = &cri.Capability{AddCapabilities: []string{"FLY"}}
			}), names: "FLY"},
			{name: "negative memory", change: resources(func(r *cri.LinuxContainerResources) { r.MemoryLimitInBytes = -1 }), names: "memory_limit_in_bytes"},
			{name: "negative shares", change: resources(func(r *cri.LinuxContainerResources) { r.CpuShares = -1 }), names: "cpu_shares"},
			{name: "oom score too high", change: resources(func(r *cri.LinuxContainerResources) { r.OomScoreAdj = 2000 }), names: "oom_score_adj"},
			{name: "bad cpuset", change: resources(func(r *cri.LinuxContainerResources) { r.CpusetCpus = "a-b" }), names: "cpuset_cpus"},
			{name: "env without key", change: func(c *cri.ContainerConfig) { c.Envs = []*cri.KeyValue{{Value: []byte("x")}} }, names: "envs[0]"},
			{name: "env key with equals sign", change: func(c *cri.ContainerConfig) { c.Envs = []*cri.KeyValue{{Key: "A=B", Value: []byte("x")}} }, names: "envs[0]"},
			{name: "bad device permissions", change: func(c *cri.ContainerConfig) {
				c.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rx"}}
			}, names: "devices[0].permissions"},
			{name: "two users", change: security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser, s.RunAsUsername = id(1), "dev" }), names: "run_as_user"},
			{name: "negative user", change: security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = id(-1) }), names: "run_as_user"},
			{name: "privileged in a plain sandbox", change: security(func(s *cri.LinuxContainerSecurityContext) { s.Privileged = true }), names: "privileged"},
		} {
			t.Run(tc.name, func(t *testing.T) {
				config := testkit.ContainerConfig(busybox, []string{"true"}, tc.change)
				if tc.code == codes.OK {
					tc.code = codes.InvalidArgument
				}
				_, err := p.Create(t.Context(), config)
				testkit.WantCode(t, err, tc.code, tc.names)
			})
		}
		left, err := c.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: p.ID}})
		if err != nil || len(left.Containers) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		_, err = c.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: p.ID})
		testkit.WantCode(t, err, codes.InvalidArgument, "config")
	})
}

func TestMissingIDs(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		_, err := c.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{})
		testkit.WantCode(t, err, codes.InvalidArgument, "pod_sandbox_id")
		_, err = c.RemovePodSandbox(t.Context(), &cri.RemovePodSandboxRequest{})
		testkit.WantCode(t, err, codes.InvalidArgument, "pod_sandbox_id")
		_, err = c.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{})
		testkit.WantCode(t, err, codes.InvalidArgument, "pod_sandbox_id")
		_, err = c.StartContainer(t.Context(), &cri.StartContainerRequest{})
		testkit.WantCode(t, err, codes.InvalidArgument, "container_id")
		_, err = c.RemoveContainer(t.Context(), &cri.RemoveContainerRequest{})
		testkit.WantCode(t, err, codes.InvalidArgument, "container_id")
		_, err = c.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: unknown, Timeout: -1})
		testkit.WantCode(t, err, codes.InvalidArgument, "timeout")
		_, err = c.PullImage(t.Context(), &cri.PullImageRequest{})
		testkit.WantCode(t, err, codes.InvalidArgument, "image")
	})
}

func TestRequestLargerThanTheLimit(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		config := c.PodConfig(t.Name())
		config.Annotations = map[string]string{"big": strings.Repeat("x", 17<<20)}
		_, err := c.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: c.Handler})
		testkit.WantCode(t, err, codes.ResourceExhausted)
		if _, err := c.Version(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Clients that go away in the middle: the daemon goes on, a retry joins what
// is under way, and nothing stays.
func TestClientsThatGoAway(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		config := c.PodConfig(t.Name())
		if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*5*time.Millisecond)
				defer cancel()
				_, _ = c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: c.Handler}) // cut or not
			})
		}
		wg.Wait()
		p, err := c.RunPod(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		list, err := c.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: config.Labels}})
		if err != nil || len(list.Items) != 1 {
			t.Errorf("pods: %v, %v", list, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.ID})
		testkit.WantCode(t, err, codes.Canceled)
		if err := p.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
