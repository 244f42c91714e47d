package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

func mounts(all ...*cri.Mount) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { c.Mounts = all }
}

func TestMounts(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		dir := t.TempDir()
		file, link, missing := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "made", "by", "berth")
		if err := os.WriteFile(file, []byte("of the host\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("file", link); err != nil {
			t.Fatal(err)
		}
		ctr := sleeper(t, p, mounts(
			&cri.Mount{HostPath: dir, ContainerPath: "/rw"},
			&cri.Mount{HostPath: dir, ContainerPath: "/ro", Readonly: true},
			&cri.Mount{HostPath: file, ContainerPath: "/some/where/file"},
			&cri.Mount{HostPath: link, ContainerPath: "/through-link"},
			&cri.Mount{HostPath: missing, ContainerPath: "/missing"},
		))
		got := ctr.Exec(t, "sh", "-c", "cat /some/where/file /through-link; touch /rw/new; touch /ro/x 2>&1 || true; touch /missing/x && echo ok")
		if !strings.HasPrefix(got, "of the host\nof the host\n") || !strings.Contains(got, "Read-only") || !strings.HasSuffix(got, "ok\n") {
			t.Errorf("got %q", got)
		}
		for _, path := range []string{filepath.Join(dir, "new"), filepath.Join(missing, "x")} {
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestMountsOverrideDefaults(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		dir := t.TempDir()
		var own []*cri.Mount
		for _, name := range []string{"hosts", "resolv.conf", "hostname"} {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte("my own "+name+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			own = append(own, &cri.Mount{HostPath: path, ContainerPath: "/etc/" + name})
		}
		shm := filepath.Join(dir, "shm")
		if err := os.Mkdir(shm, 0o755); err != nil {
			t.Fatal(err)
		}
		own = append(own, &cri.Mount{HostPath: shm, ContainerPath: "/dev/shm"})
		ctr := sleeper(t, p, mounts(own...))
		if got := ctr.Exec(t, "sh", "-c", "cat /etc/hosts /etc/resolv.conf /etc/hostname; touch /dev/shm/mine"); got != "my own hosts\nmy own resolv.conf\nmy own hostname\n" {
			t.Errorf("got %q", got)
		}
		if _, err := os.Stat(filepath.Join(shm, "mine")); err != nil {
			t.Error(err)
		}
		cgroup := sleeper(t, p, mounts(&cri.Mount{HostPath: "/sys/fs/cgroup", ContainerPath: "/sys/fs/cgroup"}))
		if got := cgroup.Exec(t, "ls", testkit.CgroupFile("memory", p.Config.Linux.CgroupParent, "")); !strings.Contains(got, cgroup.ID) {
			t.Errorf("the host's cgroups are not there: %q", got)
		}
	})
}

// shared makes a mount whose mounts propagate.
func sharedDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"before", "host", "container"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func tmpfs(t *testing.T, dir, file string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, file), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestMountPropagation(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		for _, tc := range []struct {
			name              string
			propagation       cri.MountPropagation
			comesIn, goesOut  bool
			needsPrivilegeToo bool
		}{
			{name: "private", propagation: cri.MountPropagation_PROPAGATION_PRIVATE},
			{name: "from the host", propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, comesIn: true},
			{name: "both ways", propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL, comesIn: true, goesOut: true},
		} {
			t.Run(tc.name, func(t *testing.T) {
				supported(t, c.Handler)
				dir := sharedDir(t)
				tmpfs(t, filepath.Join(dir, "before"), "was-there")
				p := c.Pod(t, func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.Privileged = true })
				ctr := sleeper(t, p, mounts(&cri.Mount{HostPath: dir, ContainerPath: "/data", Propagation: tc.propagation}),
					security(func(s *cri.LinuxContainerSecurityContext) { s.Privileged = true }))
				tmpfs(t, filepath.Join(dir, "host"), "came-later")
				got := ctr.Exec(t, "sh", "-c", "ls /data/before /data/host; mount -t tmpfs t /data/container && touch /data/container/inner")
				if !strings.Contains(got, "was-there") {
					t.Errorf("a mount below is not seen: %q", got)
				}
				if strings.Contains(got, "came-later") != tc.comesIn {
					t.Errorf("a later mount of the host: %q", got)
				}
				_, err := os.Stat(filepath.Join(dir, "container", "inner"))
				if (err == nil) != tc.goesOut {
					t.Errorf("a mount of the container: %v", err)
				}
				if tc.goesOut {
					ctr.Exec(t, "umount", "/data/container")
				}
			})
		}
	})
}

func TestPropagationNeedsASharedMount(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		dir := t.TempDir()
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		p := c.Pod(t, func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.Privileged = true })
		_, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"},
			mounts(&cri.Mount{HostPath: dir, ContainerPath: "/data", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}),
			security(func(s *cri.LinuxContainerSecurityContext) { s.Privileged = true })))
		if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "shared") {
			t.Errorf("err = %v", err)
		}
	})
}

func TestImageVolumes(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		ref := image(t, c, testkit.ImageOptions{Volumes: []string{"/data", "/mounted"}, Files: map[string]string{"data/seed": "from the image\n"}})
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "own"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		ctr := p.Container(t, ref, []string{"sleep", "1000"}, mounts(&cri.Mount{HostPath: dir, ContainerPath: "/mounted"}))
		got := ctr.Exec(t, "sh", "-c", "cat /data/seed; ls /mounted; grep -c ' /data ' /proc/mounts; touch /data/new && echo written")
		if got != "from the image\nown\n1\nwritten\n" {
			t.Errorf("got %q", got)
		}
	})
}

// What berth keeps for pods and containers is out of other local users' reach,
// and within that of the containers' own.
func TestFilesOfOtherUsersContainers(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		d := c.Daemon()
		for _, dir := range []string{d.Sandboxes(), d.Containers(), d.SandboxStates(), d.ContainerStates()} {
			info, err := os.Stat(dir)
			if err != nil {
				t.Fatal(err)
			}
			if mode := info.Mode().Perm(); mode != 0o700 {
				t.Errorf("%s has mode %o", dir, mode)
			}
		}
		ref := image(t, c, testkit.ImageOptions{Volumes: []string{"/tmp"}})
		ctr := c.Pod(t).Container(t, ref, []string{"sleep", "1000"}, security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = id(1000) }))
		got := ctr.Exec(t, "sh", "-c", "id -u; cat /etc/hosts /etc/hostname /etc/resolv.conf >/dev/null && echo read; touch /tmp/new /dev/shm/new && stat -c %u /tmp/new; grep -c ' /tmp ' /proc/mounts")
		if got != "1000\nread\n1000\n1\n" {
			t.Errorf("got %q", got)
		}
		if _, err := os.Stat(filepath.Join(d.Volumes(ctr.ID), "0", "new")); err != nil {
			t.Errorf("the volume: %v", err)
		}
	})
}

func TestRootIsTheContainersOwn(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		a, b := sleeper(t, p), sleeper(t, p)
		a.Exec(t, "touch", "/only-here")
		if got := b.Exec(t, "ls", "/"); strings.Contains(got, "only-here") {
			t.Errorf("another container sees it: %q", got)
		}
	})
}
