package spec_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/host"
	"berth/internal/spec"
)

// runcPath is where the build puts runc.
const runcPath = "../../bin/libexec/runc"

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bundle makes a bundle whose root has busybox, and returns it.
func bundle(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	bin := filepath.Join(dir, "rootfs/bin")
	must(t, os.MkdirAll(bin, 0o755))
	busybox, err := exec.LookPath("busybox")
	must(t, err)
	data, err := os.ReadFile(busybox)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(bin, "busybox"), data, 0o755))
	for _, applet := range []string{"sh", "cat", "id", "ls", "grep", "hostname", "touch", "stat", "pwd", "awk", "mount"} {
		must(t, os.Symlink("busybox", filepath.Join(bin, applet)))
	}
	return dir
}

// run runs script by the spec of the container and gives its output.
func run(t *testing.T, change func(dir string, in *spec.Input), script string) string {
	t.Helper()
	dir := bundle(t)
	kernel, err := spec.ReadKernel()
	must(t, err)
	ns := filepath.Join(dir, "ns")
	must(t, host.PinNamespaces(ns, host.NamespaceOptions{Net: true, IPC: true, UTS: true, Hostname: "pod"}))
	t.Cleanup(func() {
		if err := host.UnpinNamespaces(ns); err != nil {
			t.Error(err)
		}
	})
	id := fmt.Sprintf("berth-spec-%d-%d", os.Getpid(), time.Now().UnixNano())
	for name, content := range map[string]string{"hostname": "pod\n", "hosts": "127.0.0.1 localhost\n", "resolv.conf": "nameserver 192.0.2.1\n"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	must(t, os.Mkdir(filepath.Join(dir, "shm"), 0o755))
	must(t, os.Chmod(filepath.Join(dir, "shm"), 0o777))
	own := &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}
	in := spec.Input{
		ID: id, SandboxID: "s", CgroupsPath: "/" + id, Kernel: kernel,
		Sandbox: &runtime.PodSandboxConfig{Hostname: "pod", Linux: &runtime.LinuxPodSandboxConfig{
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: own}}},
		Container: &runtime.ContainerConfig{
			Command: []string{"/bin/sh", "-c", script},
			Linux: &runtime.LinuxContainerConfig{
				Resources:       &runtime.LinuxContainerResources{},
				SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: own},
			},
		},
		Namespaces: spec.Namespaces{Net: ns + "/net", IPC: ns + "/ipc", UTS: ns + "/uts"},
		Hostname:   dir + "/hostname", Hosts: dir + "/hosts", ResolvConf: dir + "/resolv.conf", Shm: dir + "/shm",
		User: spec.User{AdditionalGIDs: []uint32{0}},
	}
	change(dir, &in)
	in.Host, err = spec.Prepare(in.Container, false)
	must(t, err)
	s, _, err := spec.Container(in)
	must(t, err)
	return runc(t, dir, id, s)
}

func runc(t *testing.T, dir, id string, s *specs.Spec) string {
	t.Helper()
	data, err := json.Marshal(s)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o644))
	binary, err := filepath.Abs(runcPath)
	must(t, err)
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("%v: run `make runtimes` first", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "--root", filepath.Join(dir, "state"), "run", "--bundle", dir, id).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func checkLines(t *testing.T, got string, want ...string) {
	t.Helper()
	for _, line := range want {
		if !strings.Contains("\n"+got, "\n"+line+"\n") {
			t.Errorf("there is no line %q in:\n%s", line, got)
		}
	}
}

// TestRuncOrdinary: what the spec says is what a process finds.
func TestRuncOrdinary(t *testing.T) {
	got := run(t, func(dir string, in *spec.Input) {
		c, sc := in.Container, in.Container.Linux.SecurityContext
		in.User = spec.User{UID: 1000, GID: 1001, AdditionalGIDs: []uint32{50, 1001}}
		c.Linux.Resources.OomScoreAdj = 777
		c.WorkingDir = "/made/by/runc"
		c.Envs = []*runtime.KeyValue{{Key: "OPTS", Value: []byte("a=b=c")}}
		sc.ReadonlyRootfs, sc.NoNewPrivs = true, true
		sc.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
		sc.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
		sc.MaskedPaths, sc.ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
		c.Mounts = []*runtime.Mount{
			{ContainerPath: "/data/inner", HostPath: dir + "/inner", Readonly: true, RecursiveReadOnly: true, MountOptions: []string{"noexec"}},
			{ContainerPath: "/data", HostPath: dir + "/data"},
			{ContainerPath: "/etc/hosts/", HostPath: dir + "/hostname"},
		}
		c.Devices = []*runtime.Device{{HostPath: "/dev/null", ContainerPath: "/dev/hole", Permissions: "rw"}}
		must(t, os.Mkdir(dir+"/data", 0o777))
		must(t, os.Chmod(dir+"/data", 0o777))
	}, `
echo "pwd $(pwd)"; echo "opts $OPTS"; echo "path $PATH"; echo "hostname $(hostname) $HOSTNAME"
echo "uid $(id -u) gid $(id -g) groups $(id -G)"
echo "oom $(cat /proc/self/oom_score_adj)"
grep -E 'CapEff|CapAmb|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status
touch /x 2>/dev/null || echo "root is read-only"
touch /data/y && echo "data is writable"
touch /data/inner/z 2>/dev/null || echo "inner is read-only"
awk '$2 == "/data/inner" && $4 ~ /noexec/ {print "inner is noexec"}' /proc/mounts
echo "hosts $(cat /etc/hosts)"; echo "resolv $(cat /etc/resolv.conf)"
echo hi > /dev/hole && echo "device works"
echo "processes $(ls -d /proc/[0-9]* | grep -c '^/proc/1$')"
awk '$2 == "/sys" && $4 ~ /^ro/ {print "sys is read-only"}' /proc/mounts
touch /dev/shm/s && echo "shm is writable"
`)
	checkLines(t, got,
		"pwd /made/by/runc", "opts a=b=c", "path /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "hostname pod pod",
		"uid 1000 gid 1001 groups 1001 50", "oom 777",
		"CapEff:\t0000000000000400", "CapAmb:\t0000000000000400", "CapBnd:\t0000000000000400", "NoNewPrivs:\t1", "Seccomp:\t2",
		"root is read-only", "data is writable", "inner is read-only", "inner is noexec", "hosts pod", "resolv nameserver 192.0.2.1",
		"device works", "processes 1", "sys is read-only", "shm is writable",
	)
}

// TestRuncPrivileged: all that this daemon has itself, and nothing hidden.
func TestRuncPrivileged(t *testing.T) {
	got := run(t, func(_ string, in *spec.Input) {
		in.Sandbox.Linux.SecurityContext.Privileged = true
		in.Container.Linux.SecurityContext.Privileged = true
		in.Container.Linux.SecurityContext.MaskedPaths = []string{"/proc/kcore"}
		in.Container.Linux.Resources.OomScoreAdj = -1000 // this machine cannot
	}, `
grep -E 'CapEff|CapAmb|Seccomp:' /proc/self/status
awk '$2 == "/sys" && $4 ~ /^rw/ {print "sys is writable"}' /proc/mounts
awk '$2 == "/sys/fs/cgroup" && $4 ~ /^rw/ {print "cgroup is writable"}' /proc/mounts
grep -q ' /proc/kcore ' /proc/mounts || echo "nothing is masked"
test -c /dev/full && echo "device there"
`)
	own, err := os.ReadFile("/proc/self/status")
	must(t, err)
	_, caps, _ := strings.Cut(string(own), "CapEff:")
	caps, _, _ = strings.Cut(caps, "\n")
	checkLines(t, got, "CapEff:"+caps, "CapAmb:\t0000000000000000", "Seccomp:\t0", "sys is writable", "cgroup is writable", "nothing is masked", "device there")
}

// TestRuncPropagation: a mount made in the container shows on the host.
func TestRuncPropagation(t *testing.T) {
	var shared string
	got := run(t, func(dir string, in *spec.Input) {
		shared = dir + "/shared"
		must(t, os.Mkdir(shared, 0o755))
		must(t, unix.Mount("none", shared, "tmpfs", 0, ""))
		t.Cleanup(func() {
			for _, p := range []string{shared + "/in", shared} {
				if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
					t.Error(p, err)
				}
			}
		})
		must(t, unix.Mount("", shared, "", unix.MS_SHARED, ""))
		in.Sandbox.Linux.SecurityContext.Privileged = true
		in.Container.Linux.SecurityContext.Privileged = true
		in.Container.Mounts = []*runtime.Mount{{ContainerPath: "/shared", HostPath: shared, Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
	}, `busybox=/bin/busybox; $busybox mkdir /shared/in && mount -t tmpfs none /shared/in && touch /shared/in/file && echo done`)
	checkLines(t, got, "done")
	if _, err := os.Stat(shared + "/in/file"); err != nil {
		t.Error(err)
	}
}
