package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

func security(set func(*cri.LinuxContainerSecurityContext)) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) {
		if c.Linux.SecurityContext == nil {
			c.Linux.SecurityContext = &cri.LinuxContainerSecurityContext{}
		}
		set(c.Linux.SecurityContext)
	}
}

func id(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }

func TestUsers(t *testing.T) {
	type sec = cri.LinuxContainerSecurityContext
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		named := image(t, c, testkit.ImageOptions{User: "dev"})
		grouped := image(t, c, testkit.ImageOptions{User: "dev:video"})
		numeric := image(t, c, testkit.ImageOptions{User: "4321"})
		strict := cri.SupplementalGroupsPolicy_Strict
		for _, tc := range []struct {
			name, image string
			sec         *sec
			want        string // uid gid groups
		}{
			{"root", busybox, &sec{}, "0 0 0"},
			{"image's name", named, &sec{}, "1000 1000 1000 10 44"},
			{"image's name and group", grouped, &sec{}, "1000 44 44 10"},
			{"image's number, unknown", numeric, &sec{}, "4321 0 0"},
			{"user over image", named, &sec{RunAsUser: id(1)}, "1 1 1 44"},
			{"name over image", numeric, &sec{RunAsUsername: "dev"}, "1000 1000 1000 10 44"},
			{"group", named, &sec{RunAsUser: id(1000), RunAsGroup: id(7)}, "1000 7 7 10 44"},
			{"supplemental", named, &sec{SupplementalGroups: []int64{99, 10}}, "1000 1000 1000 10 44 99"},
			{"strict", named, &sec{SupplementalGroups: []int64{99}, SupplementalGroupsPolicy: strict}, "1000 1000 1000 99"},
		} {
			got := p.Output(t, tc.image, []string{"sh", "-c", "echo $(id -u) $(id -g) $(id -G)"}, func(c *cri.ContainerConfig) { c.Linux.SecurityContext = tc.sec })
			have, want := strings.Fields(got), strings.Fields(tc.want)
			if diff := cmp.Diff(set(want), set(have)); diff != "" || have[0] != want[0] || have[1] != want[1] {
				t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
			}
		}
		_, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"}, security(func(s *sec) { s.RunAsUsername = "nobody-at-all" })))
		testkit.WantCode(t, err, codes.InvalidArgument, "nobody-at-all")
		_, err = p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"}, security(func(s *sec) { s.RunAsGroup = id(3) })))
		testkit.WantCode(t, err, codes.InvalidArgument, "run_as_group")
	})
}

func set(all []string) map[string]bool {
	m := map[string]bool{}
	for _, one := range all {
		m[one] = true
	}
	return m
}

// capabilities reads a set of PID 1 as a number.
func capabilities(t *testing.T, c *testkit.Container, kind string) string {
	t.Helper()
	return strings.TrimSpace(c.Exec(t, "sh", "-c", "grep "+kind+": /proc/1/status | cut -f2"))
}

func TestCapabilities(t *testing.T) {
	type capability = cri.Capability
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		const defaults = "00000000a80425fb"
		for _, tc := range []struct {
			name string
			caps *capability
			want string
		}{
			{"default", nil, defaults},
			{"add", &capability{AddCapabilities: []string{"NET_ADMIN"}}, "00000000a80435fb"},
			{"add with prefix, lower case", &capability{AddCapabilities: []string{"cap_net_admin"}}, "00000000a80435fb"},
			{"drop", &capability{DropCapabilities: []string{"CHOWN"}}, "00000000a80425fa"},
			{"drop all, add one", &capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"CHOWN"}}, "0000000000000001"},
		} {
			ctr := sleeper(t, p, security(func(s *cri.LinuxContainerSecurityContext) { s.Capabilities = tc.caps }))
			for _, kind := range []string{"CapEff", "CapPrm", "CapBnd"} {
				if got := capabilities(t, ctr, kind); got != tc.want {
					t.Errorf("%s: %s is %s, want %s", tc.name, kind, got, tc.want)
				}
			}
			if got := capabilities(t, ctr, "CapInh"); got != "0000000000000000" {
				t.Errorf("%s: inheritable %s", tc.name, got)
			}
		}
		all := sleeper(t, p, security(func(s *cri.LinuxContainerSecurityContext) {
			s.Capabilities = &capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"SYS_TIME"}}
		}))
		host, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		if got := capabilities(t, all, "CapEff"); !strings.Contains(string(host), "CapBnd:\t"+got) && got < "000001f" {
			t.Errorf("all but one: %s", got)
		}
		ambient := sleeper(t, p, security(func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser = id(1000)
			s.Capabilities = &capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
		}))
		for _, kind := range []string{"CapAmb", "CapEff", "CapInh"} {
			if got := capabilities(t, ambient, kind); got != "0000000000000400" {
				t.Errorf("ambient: %s is %s", kind, got)
			}
		}
	})
}

func TestPrivileged(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		privileged := security(func(s *cri.LinuxContainerSecurityContext) { s.Privileged = true })
		_, err := c.Pod(t).Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"}, privileged))
		testkit.WantCode(t, err, codes.InvalidArgument, "privileged")

		p := c.Pod(t, func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.Privileged = true })
		ctr := sleeper(t, p, privileged)
		if got := ctr.Exec(t, "sh", "-c", "grep -c Seccomp:.*0 /proc/1/status; ls /dev/loop-control; grep ' /sys ' /proc/mounts"); !strings.HasPrefix(got, "1\n/dev/loop-control\n") || strings.Contains(got, " ro,") {
			t.Errorf("got %q", got)
		}
		if masked := ctr.Exec(t, "sh", "-c", "grep -c /proc/kcore /proc/mounts || true"); masked != "0\n" {
			t.Errorf("paths are masked: %s", masked)
		}
		if got := ctr.Exec(t, "sh", "-c", "mount -t tmpfs t /mnt 2>/dev/null || (mkdir /mnt; mount -t tmpfs t /mnt); echo $?"); !strings.HasSuffix(got, "0\n") {
			t.Errorf("mount: %q", got)
		}
	})
}

func TestNoNewPrivs(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		for _, on := range []bool{false, true} {
			ctr := sleeper(t, p, security(func(s *cri.LinuxContainerSecurityContext) { s.NoNewPrivs = on }))
			want := map[bool]string{false: "0\n", true: "1\n"}[on]
			if got := ctr.Exec(t, "sh", "-c", "grep NoNewPrivs /proc/1/status | cut -f2"); got != want {
				t.Errorf("no_new_privs %v: %q", on, got)
			}
		}
	})
}

func TestReadOnlyRoot(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		dir := t.TempDir()
		ctr := sleeper(t, p, security(func(s *cri.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true }),
			func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: "/data"}} })
		if got := ctr.Exec(t, "sh", "-c", "touch /x 2>&1 || true; touch /data/x && echo volume; touch /dev/shm/x && echo shm"); !strings.Contains(got, "Read-only") || !strings.HasSuffix(got, "volume\nshm\n") {
			t.Errorf("got %q", got)
		}
	})
}

func TestMaskedAndReadOnlyPaths(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		ctr := sleeper(t, p, security(func(s *cri.LinuxContainerSecurityContext) {
			s.MaskedPaths, s.ReadonlyPaths = []string{"/etc/passwd", "/home", "/not/there"}, []string{"/tmp"}
		}))
		got := ctr.Exec(t, "sh", "-c", "wc -c < /etc/passwd; ls /home | wc -l; touch /tmp/x 2>&1 || true")
		if !strings.HasPrefix(got, "0\n0\n") || !strings.Contains(got, "Read-only") {
			t.Errorf("got %q", got)
		}
	})
}

func TestSeccomp(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		deny := filepath.Join(t.TempDir(), "deny.json")
		profile, err := json.Marshal(map[string]any{
			"defaultAction": "SCMP_ACT_ALLOW",
			"syscalls":      []any{map[string]any{"names": []string{"mkdir", "mkdirat"}, "action": "SCMP_ACT_ERRNO"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(deny, profile, 0o600); err != nil {
			t.Fatal(err)
		}
		type P = cri.SecurityProfile
		for _, tc := range []struct {
			name    string
			profile *P
			mode    string
			mkdir   string
		}{
			{"none", nil, "0", "made"},
			{"unconfined", &P{ProfileType: cri.SecurityProfile_Unconfined}, "0", "made"},
			{"runtime default", &P{ProfileType: cri.SecurityProfile_RuntimeDefault}, "2", "made"},
			{"localhost", &P{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: deny}, "2", "denied"},
		} {
			got := p.Output(t, busybox, []string{"sh", "-c", "grep Seccomp: /proc/1/status | cut -f2; mkdir /tmp/x 2>/dev/null && echo made || echo denied"},
				security(func(s *cri.LinuxContainerSecurityContext) { s.Seccomp = tc.profile }))
			if want := tc.mode + "\n" + tc.mkdir + "\n"; got != want {
				t.Errorf("%s: %q, want %q", tc.name, got, want)
			}
		}
		_, err = p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"}, security(func(s *cri.LinuxContainerSecurityContext) {
			s.Seccomp = &P{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/not/there.json"}
		})))
		testkit.WantCode(t, err, codes.InvalidArgument, "/not/there.json")
	})
}

func TestDevices(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink("/dev/full", link); err != nil {
			t.Fatal(err)
		}
		device := func(host, container, permissions string) func(*cri.ContainerConfig) {
			return func(c *cri.ContainerConfig) {
				c.Devices = []*cri.Device{{HostPath: host, ContainerPath: container, Permissions: permissions}}
			}
		}
		p := c.Pod(t)
		if got := p.Output(t, busybox, []string{"sh", "-c", "ls -l /dev/kmsg2 | cut -c1; head -c 1 /dev/kmsg2 > /dev/null && echo read; (echo x > /dev/kmsg2) 2>/dev/null || echo no write"},
			device("/dev/kmsg", "/dev/kmsg2", "r"),
			security(func(s *cri.LinuxContainerSecurityContext) {
				s.Capabilities = &cri.Capability{AddCapabilities: []string{"SYSLOG"}}
			})); got != "c\nread\nno write\n" {
			t.Errorf("read only: %q", got)
		}
		if got := p.Output(t, busybox, []string{"sh", "-c", "(echo x > /dev/mine) 2>&1 || true"}, device(link, "/dev/mine", "rwm")); !strings.Contains(got, "No space left") {
			t.Errorf("through a symlink: %q", got)
		}
		_, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"}, device("/dev/not-there", "/dev/x", "rwm")))
		if err == nil || !strings.Contains(err.Error(), "/dev/not-there") {
			t.Errorf("err = %v", err)
		}
	})
}
