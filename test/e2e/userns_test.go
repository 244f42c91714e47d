package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// firstID and idCount are what a kubelet's first pod might get.
const firstID, idCount = 65536 * 7, 65536

func mapping() []*cri.IDMapping {
	return []*cri.IDMapping{{HostId: firstID, ContainerId: 0, Length: idCount}}
}

// userNamespace has a pod ask for one, as a kubelet does for hostUsers: false.
func userNamespace(p *cri.PodSandboxConfig) {
	p.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Uids: mapping(), Gids: mapping()}
}

// mapped is a mount whose files have the IDs that the pod shows.
func mapped(m *cri.Mount) *cri.Mount {
	m.UidMappings, m.GidMappings = mapping(), mapping()
	return m
}

// hostOwner is who owns a file on the host.
func hostOwner(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// hostIDs are a field of /proc/PID/status of a container's first process.
func hostIDs(t *testing.T, ctr *testkit.Container, field string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pidOf(t, ctr)))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.Join(strings.Fields(rest), " ")
		}
	}
	return ""
}

func TestUserNamespaceFeatures(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		status, err := c.Status(t.Context(), &cri.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range status.RuntimeHandlers {
			// The others are gVisor's, and one with a sandbox container.
			ours := slices.Contains([]string{"", "berth", "pod", "runc"}, h.Name)
			if h.GetFeatures().GetUserNamespaces() != ours || ours && !h.GetFeatures().GetRecursiveReadOnlyMounts() {
				t.Errorf("handler %q has features %v", h.Name, h.Features)
			}
		}
		if f := status.Features; !f.GetUserNamespacesHostNetwork() || !f.GetMountOptions() || !f.GetSupplementalGroupsPolicy() {
			t.Errorf("features %v", f)
		}
	})
}

// What a container of a pod with a user namespace sees and may do.
func TestUserNamespace(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t, userNamespace, func(p *cri.PodSandboxConfig) {
			p.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "13"}
		})
		ref := image(t, c, testkit.ImageOptions{Volumes: []string{"/data"}, Files: map[string]string{"data/seed": "from the image\n"}})
		dir := t.TempDir()
		ctr := p.Container(t, ref, []string{"sleep", "1000"}, mounts(mapped(&cri.Mount{HostPath: dir, ContainerPath: "/vol"})))
		got := ctr.Exec(t, "sh", "-c", `
cat /proc/self/uid_map | awk '{print $1, $2, $3}'
id -u; id -g
for f in / /etc/passwd /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /data /data/seed /vol; do echo $f $(stat -c %u:%g $f); done
touch /new /data/new /vol/new /dev/shm/new && echo written
echo 1.2.3.4 x >> /etc/hosts && echo appended
hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max
echo x > /dev/null && head -c1 /dev/zero | wc -c
ls -d /sys/class/net/eth0
`)
		want := fmt.Sprintf(`0 %d %d
0
0
/ 0:0
/etc/passwd 0:0
/etc/hosts 0:0
/etc/hostname 0:0
/etc/resolv.conf 0:0
/dev/shm 0:0
/data 0:0
/data/seed 0:0
/vol 0:0
written
appended
%s
0
1
13
1
/sys/class/net/eth0
`, firstID, idCount, p.Config.Hostname)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		mappedRoot := fmt.Sprintf("%d:%d", firstID, firstID)
		owners := map[string]string{
			"in the volume of the host":  hostOwner(t, filepath.Join(dir, "new")),
			"in the volume of the image": hostOwner(t, filepath.Join(c.Daemon().Volumes(ctr.ID), "0", "new")),
		}
		if diff := cmp.Diff(map[string]string{"in the volume of the host": "0:0", "in the volume of the image": mappedRoot}, owners); diff != "" {
			t.Error(diff)
		}
		if got, want := hostIDs(t, ctr, "Uid"), strings.TrimSpace(strings.Repeat(fmt.Sprint(firstID, " "), 4)); got != want {
			t.Errorf("on the host it runs as %s, want %s", got, want)
		}
	})
}

func TestUserNamespaceUsersAndLogs(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t, userNamespace)
		for _, tty := range []bool{false, true} {
			got := p.Output(t, busybox, []string{"sh", "-c", "echo $(id -u) $(id -g); touch /tmp/mine && stat -c %u:%g /tmp/mine; [ -t 1 ] || echo again > /dev/stdout"}, func(c *cri.ContainerConfig) {
				c.Tty = tty
				c.Linux.SecurityContext = &cri.LinuxContainerSecurityContext{RunAsUser: id(1000), RunAsGroup: id(65535)}
			})
			want := "1000 65535\n1000:65535\nagain\n"
			if tty {
				want = "1000 65535\r\n1000:65535\r\n"
			}
			if got != want {
				t.Errorf("tty %v: got %q", tty, got)
			}
		}
		_, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"}, security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = id(idCount) })))
		testkit.WantCode(t, err, codes.InvalidArgument, "user 65536", "not mapped")
	})
}

// A pod's containers share its namespaces, the user namespace with them.
func TestUserNamespaceShared(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		for _, tc := range []struct {
			name   string
			change func(*cri.NamespaceOption)
		}{
			{"PID of the container", func(o *cri.NamespaceOption) { o.Pid = cri.NamespaceMode_CONTAINER }},
			{"PID of the pod", func(o *cri.NamespaceOption) { o.Pid = cri.NamespaceMode_POD }},
			{"network of the node", func(o *cri.NamespaceOption) { o.Network = cri.NamespaceMode_NODE }},
			{"network of the node, PID of the pod", func(o *cri.NamespaceOption) {
				o.Network, o.Pid = cri.NamespaceMode_NODE, cri.NamespaceMode_POD
			}},
		} {
			t.Run(tc.name, func(t *testing.T) {
				var options *cri.NamespaceOption
				p := c.Pod(t, userNamespace, func(p *cri.PodSandboxConfig) {
					options = p.Linux.SecurityContext.NamespaceOptions
					tc.change(options)
				})
				same := security(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions = options })
				a, b := sleeper(t, p, same), sleeper(t, p, same)
				const show = "for n in user net ipc uts; do readlink /proc/self/ns/$n; done; ls /sys/class/net | grep -c .; touch /new && stat -c %u /new /proc/1"
				if diff := cmp.Diff(a.Exec(t, "sh", "-c", show), b.Exec(t, "sh", "-c", show)); diff != "" {
					t.Error(diff)
				}
				node, err := os.Readlink("/proc/self/ns/user")
				if err != nil {
					t.Fatal(err)
				}
				if got := a.Exec(t, "readlink", "/proc/self/ns/user"); strings.TrimSpace(got) == node {
					t.Errorf("it is the node's: %s", got)
				}
				processes := a.Exec(t, "sh", "-c", "for d in /proc/[0-9]*; do readlink $d/exe; cut -d' ' -f2 $d/stat; done | grep -c '(sleep)'")
				if shared := options.Pid == cri.NamespaceMode_POD; (strings.TrimSpace(processes) == "1") == shared {
					t.Errorf("%s sleeping processes are seen", processes)
				}
			})
		}
	})
}

func TestUserNamespacePrivileged(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t, userNamespace, func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.Privileged = true })
		ctr := sleeper(t, p, security(func(s *cri.LinuxContainerSecurityContext) { s.Privileged = true }))
		got := ctr.Exec(t, "sh", "-c", "mount -t tmpfs t /tmp && echo mounted; echo 1 > /proc/sys/vm/drop_caches || echo not the node; ls /dev/null")
		if !strings.HasPrefix(got, "mounted\n") || !strings.Contains(got, "not the node") {
			t.Errorf("got %q", got)
		}
	})
}

// Files of a volume whose mount is mapped are the same users' on the host as in
// the pod; without, they are nobody's there.
func TestUserNamespaceMounts(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		dir := t.TempDir()
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(file, 1234, 5678); err != nil {
			t.Fatal(err)
		}
		p := c.Pod(t, userNamespace)
		ctr := sleeper(t, p, mounts(
			mapped(&cri.Mount{HostPath: dir, ContainerPath: "/mapped", Readonly: true, RecursiveReadOnly: true}),
			mapped(&cri.Mount{HostPath: file, ContainerPath: "/file"}),
			&cri.Mount{HostPath: dir, ContainerPath: "/plain"},
		))
		got := ctr.Exec(t, "sh", "-c", "stat -c %u:%g /mapped/file /file /plain/file; cat /file; touch /mapped/new 2>&1; touch /plain/new 2>&1; true")
		if want := "1234:5678\n1234:5678\n65534:65534\nx"; !strings.HasPrefix(got, want) || !strings.Contains(got, "Read-only") || !strings.Contains(got, "/plain/new: Permission denied") {
			t.Errorf("got %q", got)
		}
	})
}

func TestUserNamespaceRefused(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		type options = cri.NamespaceOption
		for name, tc := range map[string]struct {
			change func(*options)
			words  string
		}{
			"PID of the node":    {func(o *options) { o.Pid = cri.NamespaceMode_NODE }, "namespace_options.pid: NODE"},
			"IPC of the node":    {func(o *options) { o.Ipc = cri.NamespaceMode_NODE }, "namespace_options.ipc: NODE"},
			"no mapping":         {func(o *options) { o.UsernsOptions.Gids = nil }, "userns_options.gids: 0 mappings"},
			"empty mapping":      {func(o *options) { o.UsernsOptions.Uids[0].Length = 0 }, "uids[0].length"},
			"beyond the last ID": {func(o *options) { o.UsernsOptions.Uids[0].HostId = 1<<32 - 1 - idCount + 1 }, "uids[0].host_id"},
			"no root":            {func(o *options) { o.UsernsOptions.Uids[0].ContainerId = 1 }, "no root"},
			"twice":              {func(o *options) { o.UsernsOptions.Uids = append(mapping(), mapping()...) }, "uids[1].container_id"},
			"mode":               {func(o *options) { o.UsernsOptions.Mode = cri.NamespaceMode_CONTAINER }, "POD or NODE"},
		} {
			config := c.PodConfig(t.Name())
			userNamespace(config)
			tc.change(config.Linux.SecurityContext.NamespaceOptions)
			_, err := c.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: c.Handler})
			if err == nil {
				t.Errorf("%s: no error", name)
				continue
			}
			testkit.WantCode(t, err, codes.InvalidArgument, tc.words)
		}
		with := &cri.LinuxContainerSecurityContext{NamespaceOptions: &options{Pid: cri.NamespaceMode_CONTAINER, UsernsOptions: &cri.UserNamespace{Uids: mapping(), Gids: mapping()}}}
		_, err := c.Pod(t).Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"}, func(c *cri.ContainerConfig) { c.Linux.SecurityContext = with }))
		testkit.WantCode(t, err, codes.InvalidArgument, "without a user namespace")
	})
}

// Statistics and network figures of such a pod are as those of others.
func TestUserNamespaceStats(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t, userNamespace)
		ctr := sleeper(t, p)
		ctr.Exec(t, "dd", "if=/dev/zero", "of=/file", "bs=1k", "count=2000")
		testkit.Until(t, 30*time.Second, func(ctx context.Context) string {
			got, err := c.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: ctr.ID})
			if err != nil {
				return err.Error()
			}
			if s := got.Stats; s.Memory.GetWorkingSetBytes().GetValue() == 0 || s.WritableLayer.GetUsedBytes().GetValue() < 2_000_000 {
				return fmt.Sprintf("no memory or no layer yet: %v", s)
			}
			return ""
		})
		got, err := c.PodSandboxStats(t.Context(), &cri.PodSandboxStatsRequest{PodSandboxId: p.ID})
		if err != nil || got.Stats.GetLinux().GetNetwork().GetDefaultInterface().GetName() != "eth0" {
			t.Errorf("pod: %v, %v", got, err)
		}
	})
}

// A daemon that was killed finds such pods as they were, and can go on with them.
func TestUserNamespaceKilledDaemon(t *testing.T) {
	ownDaemon(t, func(t *testing.T, d *testkit.Daemon, c *testkit.Client) {
		shared := namespaces(func(n *cri.NamespaceOption) { n.Pid = cri.NamespaceMode_POD })
		for name, p := range map[string]*testkit.Pod{"plain": c.Pod(t, userNamespace), "shared PID": c.Pod(t, shared, userNamespace)} {
			join := security(func(s *cri.LinuxContainerSecurityContext) {
				s.NamespaceOptions = p.Config.Linux.SecurityContext.NamespaceOptions
			})
			before := sleeper(t, p, join)
			created, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"cat", "/vol/etc/passwd"}, join, mounts(volumeOf(busyboxID, "/vol", ""))))
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := d.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s := p.Status(t); s.State != cri.PodSandboxState_SANDBOX_READY {
				t.Errorf("%s: the pod is %v", name, s)
			}
			if err := created.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			created.Exited(t)
			created.Logged(t, "nobody")
			after := sleeper(t, p, join)
			if x, y := ns(t, before, "user"), ns(t, after, "user"); x != y {
				t.Errorf("%s: user namespaces %s and %s", name, x, y)
			}
		}
	})
}
