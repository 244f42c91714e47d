package doctor

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"

	"berth/internal/config"
	"berth/internal/version"
)

// machine is a recorded tree of the kernel's files, with one thing another way.
func machine(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	all := map[string]string{
		"proc/sys/kernel/osrelease":              "6.1.0-13-amd64",
		"proc/sys/kernel/seccomp/actions_avail":  "kill_process errno",
		"proc/sys/kernel/pid_max":                "4194304",
		"proc/sys/user/max_user_namespaces":      "1000",
		"proc/sys/net/ipv4/ip_forward":           "1",
		"proc/sys/fs/inotify/max_user_instances": "128",
		"proc/self/mountinfo":                    "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw",
		"sys/fs/cgroup/cgroup.controllers":       "cpuset cpu io memory hugetlb pids",
	}
	for _, kind := range []string{"mnt", "net", "ipc", "uts", "pid", "cgroup", "user"} {
		all["proc/self/ns/"+kind] = ""
	}
	for path, text := range files {
		all[path] = text
	}
	for path, text := range all {
		if text == "-" {
			continue
		}
		if dir, ok := strings.CutSuffix(path, "/."); ok {
			if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// bySystemd is a machine that systemd runs, with cgroup v2.
func bySystemd(more map[string]string) map[string]string {
	files := map[string]string{"proc/1/comm": "systemd", "run/systemd/system/.": "", "run/dbus/system_bus_socket": "", "proc/pressure/cpu": "some avg10=0.00"}
	maps.Copy(files, more)
	return files
}

// hybrid is a machine with cgroup v1 and a v2 tree beside it.
var hybrid = map[string]string{
	"proc/self/mountinfo": `30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 23 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids`,
	"sys/fs/cgroup/cgroup.controllers": "-", "sys/fs/cgroup/unified/cgroup.controllers": "hugetlb",
}

// look makes one check and gives its findings, "level check: detail" each.
func look(t *testing.T, e *exam, check func()) string {
	t.Helper()
	check()
	var lines []string
	for _, f := range e.findings {
		if (f.Level == OK) != (f.Advice == "") {
			t.Errorf("%s is %s with the advice %q", f.Check, f.Level, f.Advice)
		}
		lines = append(lines, string(f.Level)+" "+f.Check+": "+f.Detail)
	}
	return strings.Join(lines, "\n")
}

func TestKernelFiles(t *testing.T) {
	for _, test := range []struct {
		name  string
		files map[string]string
		check func(*exam) func()
		want  string
	}{
		{"kernel", nil, func(e *exam) func() { return e.kernel }, "ok kernel: Linux 6.1.0-13-amd64"},
		{"old kernel", map[string]string{"proc/sys/kernel/osrelease": "5.10.200"}, func(e *exam) func() { return e.kernel }, "fail kernel: Linux 5.10.200 is too old"},
		{"oldest kernel", map[string]string{"proc/sys/kernel/osrelease": "5.11.0"}, func(e *exam) func() { return e.kernel }, "ok kernel: Linux 5.11.0; no read-only mounts"},
		{"short release", map[string]string{"proc/sys/kernel/osrelease": "7.0-rc1+"}, func(e *exam) func() { return e.kernel }, "ok kernel: Linux 7.0-rc1+"},
		{"odd release", map[string]string{"proc/sys/kernel/osrelease": "mine"}, func(e *exam) func() { return e.kernel }, `warn kernel: release "mine" is not understood`},
		{"namespaces", nil, func(e *exam) func() { return e.namespaces }, "ok namespaces: mount, network, IPC, UTS, PID, cgroup"},
		{"no IPC namespaces", map[string]string{"proc/self/ns/ipc": "-"}, func(e *exam) func() { return e.namespaces }, "fail namespaces: the kernel has no ipc namespaces"},
		{"user namespaces off", map[string]string{"proc/sys/user/max_user_namespaces": "0"}, func(e *exam) func() { return e.userNamespaces }, "warn user namespaces: user.max_user_namespaces is 0"},
		{"no user namespaces", map[string]string{"proc/self/ns/user": "-"}, func(e *exam) func() { return e.userNamespaces }, "warn user namespaces: the kernel has none"},
		{"no seccomp", map[string]string{"proc/sys/kernel/seccomp/actions_avail": "-"}, func(e *exam) func() { return e.seccomp }, "warn seccomp: the kernel has none"},
		{"modules", map[string]string{"sys/kernel/security/lsm": "capability,apparmor"}, func(e *exam) func() { return e.securityModules }, "ok security modules: capability,apparmor"},
		{"AppArmor", map[string]string{"sys/kernel/security/lsm": "lockdown,apparmor", "sys/module/apparmor/parameters/enabled": "Y", "sbin/apparmor_parser": ""},
			func(e *exam) func() { return e.securityModules }, "ok security modules: lockdown,apparmor"},
		{"AppArmor without its program", map[string]string{"sys/kernel/security/lsm": "lockdown,apparmor", "sys/module/apparmor/parameters/enabled": "Y"},
			func(e *exam) func() { return e.securityModules }, "warn security modules: lockdown,apparmor; apparmor_parser is not installed"},
		{"bridges pass by the firewall", map[string]string{"proc/sys/net/bridge/bridge-nf-call-iptables": "0"}, func(e *exam) func() { return e.bridgeFilter }, "warn bridge filter: net.bridge.bridge-nf-call-iptables is 0"},
		{"no br_netfilter", nil, func(e *exam) func() { return e.bridgeFilter }, "ok bridge filter: br_netfilter is not loaded"},
		{"few watches", map[string]string{"proc/sys/fs/inotify/max_user_watches": "1000"}, func(e *exam) func() { return e.limits }, "warn limits: fs.inotify.max_user_watches is 1000"},
		{"no forwarding", map[string]string{"proc/sys/net/ipv4/ip_forward": "0"}, func(e *exam) func() { return e.forwarding }, "warn IP forwarding: net.ipv4.ip_forward is off"},
		{"few inotify instances", map[string]string{"proc/sys/fs/inotify/max_user_instances": "16"}, func(e *exam) func() { return e.limits }, "warn limits: fs.inotify.max_user_instances is 16"},
		{"cgroup v2", nil, func(e *exam) func() { return e.cgroups }, "ok cgroups: version 2, driver cgroupfs, controllers [cpu cpuset hugetlb io memory pids]"},
		{"no memory controller", map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io hugetlb pids"}, func(e *exam) func() { return e.cgroups },
			"fail cgroups: version 2, driver cgroupfs, controllers [cpu cpuset hugetlb io pids]: without [memory]"},
		{"no hugetlb controller", map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids"}, func(e *exam) func() { return e.cgroups },
			"warn cgroups: version 2, driver cgroupfs, controllers [cpu cpuset io memory pids]: without [hugetlb]"},
		{"systemd", bySystemd(nil), func(e *exam) func() { return e.cgroups }, "ok cgroups: version 2, driver systemd, controllers [cpu cpuset hugetlb io memory pids]"},
		{"systemd without a socket", bySystemd(map[string]string{"run/dbus/system_bus_socket": "-"}), func(e *exam) func() { return e.cgroups },
			"fail cgroups: version 2, driver systemd, controllers [cpu cpuset hugetlb io memory pids]: there is no socket to ask systemd"},
		{"hybrid", hybrid, func(e *exam) func() { return e.cgroups }, "warn cgroups: version 1 (hybrid), driver cgroupfs, controllers [cpu cpuacct memory pids]: without [cpuset hugetlb io]"},
		{"no cgroups", map[string]string{"proc/self/mountinfo": ""}, func(e *exam) func() { return e.cgroups }, "fail cgroups:"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := &exam{ctx: t.Context(), Options: Options{Config: config.Default(), Root: machine(t, test.files)}}
			if got := look(t, e, test.check(e)); !strings.HasPrefix(got, test.want) {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

// The probes make real mounts and links; none of them is seen outside.
func TestProbesLeaveNoTrace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("probes need root")
	}
	state := func() []string {
		var all []string
		mounts, err := mountinfo.GetMounts(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range mounts {
			if strings.Contains(m.Mountpoint, "doctor") {
				all = append(all, m.Mountpoint)
			}
		}
		links, err := netlink.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Name, "probe-") {
				all = append(all, l.Attrs().Name)
			}
		}
		return all
	}
	cfg := config.Default()
	cfg.Root = filepath.Join(t.TempDir(), "not/there/yet")
	e := &exam{ctx: t.Context(), Options: Options{Config: cfg, Root: "/"}}
	for _, check := range []func(){e.overlay, e.userNamespaces, e.links, e.firewall} {
		check()
	}
	for _, f := range e.findings {
		if f.Level == Fail {
			t.Errorf("%s fails on this machine: %s", f.Check, f.Detail)
		}
	}
	if len(e.findings) != 4 {
		t.Errorf("%d findings", len(e.findings))
	}
	if all := state(); len(all) > 0 {
		t.Errorf("left behind: %v", all)
	}
	if entries, err := os.ReadDir(filepath.Dir(filepath.Dir(filepath.Dir(cfg.Root)))); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestCNI(t *testing.T) {
	dir := t.TempDir()
	program := func(name string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho runc version 1.2.3\necho more\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cfg := config.Default()
	cfg.Network.ConfDir, cfg.Network.BinDirs, cfg.Runtime.BinDir = filepath.Join(dir, "net.d"), nil, filepath.Join(dir, "libexec")
	found := func() string {
		t.Helper()
		e := &exam{ctx: t.Context(), Options: Options{Config: cfg, Executable: filepath.Join(dir, "berth")}}
		return look(t, e, e.cni)
	}
	want := func(prefix string) {
		t.Helper()
		if got := found(); !strings.HasPrefix(got, prefix) {
			t.Errorf("%q, want %q", got, prefix)
		}
	}
	want("fail CNI: the built-in default network: plugins bridge, host-local, portmap are in none of")
	for _, name := range []string{"bridge", "host-local", "portmap"} {
		program("libexec/cni/" + name)
	}
	want("ok CNI: the built-in default network: plugins bridge, host-local, portmap")
	cfg.Network.Default = false
	want("fail CNI: " + cfg.Network.ConfDir + " has no configuration and network.default is off")

	conf := filepath.Join(cfg.Network.ConfDir, "10-a.conflist")
	write := func(text string) {
		t.Helper()
		if err := os.MkdirAll(cfg.Network.ConfDir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "calico"}]}`)
	want("fail CNI: " + conf + ": plugins calico are in none of")
	write(`{"type": "bridge", "ipam": {"type": "host-local"}}`)
	want("ok CNI: " + conf + ": plugins bridge, host-local")
	write(`{`)
	want("fail CNI: " + conf + ": ")
	write(`{}`)
	want("fail CNI: " + conf + ": it names no plugin")

	e := &exam{ctx: t.Context(), Options: Options{Config: cfg, Executable: filepath.Join(dir, "berth")}}
	t.Setenv("PATH", "/nowhere")
	if got := look(t, e, e.programs); !strings.Contains(got, "fail supervisor: ") || !strings.Contains(got, "warn runtime runc: the shim of io.containerd.runc.v2 is neither in") {
		t.Error(got)
	}
	for _, name := range []string{"containerd-shim-berth-v1", "containerd-shim-runc-v2", "runc"} {
		program("libexec/" + name)
	}
	t.Setenv("PATH", "/bin:/usr/bin")
	e = &exam{ctx: t.Context(), Options: Options{Config: cfg, Executable: filepath.Join(dir, "berth")}}
	if got := look(t, e, e.programs); strings.Count(got, "ok ") != 2 || !strings.Contains(got, "ok runtime runc: runc version 1.2.3, "+filepath.Join(dir, "libexec/containerd-shim-runc-v2")) {
		t.Error(got)
	}
	program("libexec/containerd-shim-runsc-v1")
	cfg.Runtime.Handlers["gvisor"] = config.Handler{Type: "io.containerd.runsc.v1", ConfigPath: filepath.Join(dir, "runsc.toml")}
	e = &exam{ctx: t.Context(), Options: Options{Config: cfg, Executable: filepath.Join(dir, "berth")}}
	if got := look(t, e, e.programs); !strings.Contains(got, "warn runtime gvisor: the options of its shim: ") {
		t.Error(got)
	}
}

func TestDaemon(t *testing.T) {
	ours := version.Name + " " + version.Version()
	for _, test := range []struct {
		running  string
		problems []string
		err      error
		want     string
	}{
		{ours, nil, nil, "ok daemon: " + ours + " answers and is ready"},
		{"berth v0.0.1", nil, nil, "warn daemon: berth v0.0.1 answers and is ready, but " + ours + " is installed"},
		{"berth v0.0.1", []string{"NetworkReady is false: no CNI"}, nil, "fail daemon: berth v0.0.1: NetworkReady is false: no CNI"},
		{"containerd v2", nil, nil, "fail daemon: another runtime answers at the socket: containerd v2"},
		{"", nil, errors.New("no daemon"), "warn daemon: no daemon"},
	} {
		e := &exam{ctx: t.Context(), Options: Options{Probe: func(context.Context) (string, []string, error) { return test.running, test.problems, test.err }}}
		e.daemon()
		if got := string(e.findings[0].Level) + " daemon: " + e.findings[0].Detail; got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}

// What a kubelet and crictl are told has to fit the machine and berth.
func TestKubelet(t *testing.T) {
	const fits = "containerRuntimeEndpoint: unix:///run/berth/berth.sock\n"
	kubelet := func(e *exam) { e.cgroups(); e.findings = nil; e.kubelet() }
	for _, test := range []struct {
		name  string
		files map[string]string
		check func(*exam)
		want  []string
	}{
		{"no kubelet", bySystemd(nil), kubelet, []string{"ok kubelet: not looked at"}},
		{"fits", bySystemd(map[string]string{kubeletConfig: fits + "cgroupDriver: systemd\n"}), kubelet, []string{"ok kubelet: /var/lib/kubelet/config.yaml fits"}},
		{"other driver", bySystemd(map[string]string{kubeletConfig: fits + "cgroupDriver: cgroupfs\n"}), kubelet, []string{"warn kubelet: cgroupDriver is cgroupfs, berth's is systemd"}},
		{"other runtime", bySystemd(map[string]string{kubeletConfig: "containerRuntimeEndpoint: unix:///run/containerd/containerd.sock\n"}), kubelet,
			[]string{"warn kubelet: the runtime endpoint in /var/lib/kubelet/config.yaml is unix:///run/containerd/containerd.sock"}},
		{"the flag wins", bySystemd(map[string]string{kubeletConfig: "a: b\n", kubeletFlags: `KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=unix:///run/berth/berth.sock --x=y"`}), kubelet, []string{"ok kubelet: "}},
		{"no endpoint", bySystemd(map[string]string{kubeletConfig: "a: b\n"}), kubelet, []string{"warn kubelet: the runtime endpoint in /var/lib/kubelet/config.yaml is nothing"}},
		{"broken", bySystemd(map[string]string{kubeletConfig: "a: [\n"}), kubelet, []string{"warn kubelet: /var/lib/kubelet/config.yaml: "}},
		{"swap", bySystemd(map[string]string{kubeletConfig: fits, "proc/swaps": "Filename Type\n/swap file"}), kubelet, []string{"warn kubelet: swap is on"}},
		{"swap is wanted", bySystemd(map[string]string{kubeletConfig: fits + "failSwapOn: false\n", "proc/swaps": "Filename Type\n/swap file"}), kubelet, []string{"ok kubelet: "}},
		{"cgroup v1", with(hybrid, kubeletConfig, fits), kubelet, []string{"warn kubelet: the machine has cgroup v1"}},
		{"cgroup v1 is wanted", with(hybrid, kubeletConfig, fits+"failCgroupV1: false\n"), kubelet, []string{"ok kubelet: "}},
		{"crictl fits", map[string]string{"etc/crictl.yaml": "runtime-endpoint: unix:///run/berth/berth.sock"}, func(e *exam) { e.crictl() }, []string{"ok crictl: "}},
		{"crictl asks another", map[string]string{"etc/crictl.yaml": "runtime-endpoint: unix:///run/crio/crio.sock"}, func(e *exam) { e.crictl() }, []string{"warn crictl: the runtime endpoint in /etc/crictl.yaml is unix:///run/crio/crio.sock"}},
		{"no crictl", nil, func(e *exam) { e.crictl() }, nil},
		{"alone", nil, func(e *exam) { e.others() }, []string{"ok other runtimes: none"}},
		{"beside containerd", map[string]string{"run/containerd/containerd.sock": ""}, func(e *exam) { e.others() }, []string{"ok other runtimes: containerd at /run/containerd/containerd.sock"}},
		{"exclusive beside containerd", map[string]string{"run/containerd/containerd.sock": ""}, func(e *exam) { e.Config.Network.Exclusive = true; e.others() }, []string{"warn other runtimes: containerd at"}},
		{"a file for a socket", map[string]string{"run/berth/berth.sock": ""}, func(e *exam) { e.socket() }, []string{"fail socket: /run/berth/berth.sock is no socket"}},
		{"no pressure", nil, func(e *exam) { e.cgroups(); e.findings = nil; e.pressure() }, []string{"ok pressure (PSI): the kernel has none"}},
		{"pressure", bySystemd(nil), func(e *exam) { e.cgroups(); e.findings = nil; e.pressure() }, []string{"ok pressure (PSI): there"}},
		{"pressure on v1", with(hybrid, "proc/pressure/cpu", "some"), func(e *exam) { e.cgroups(); e.findings = nil; e.pressure() }, []string{"ok pressure (PSI): for the machine alone"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := &exam{ctx: t.Context(), Options: Options{Config: config.Default(), Root: machine(t, test.files)}}
			got := strings.Split(look(t, e, func() { test.check(e) }), "\n")
			if len(test.want) == 0 {
				test.want = []string{""}
			}
			if len(got) != len(test.want) {
				t.Fatalf("%q, want %q", got, test.want)
			}
			for i, want := range test.want {
				if !strings.HasPrefix(got[i], want) {
					t.Errorf("%q, want %q", got[i], want)
				}
			}
		})
	}
}

func with(files map[string]string, path, text string) map[string]string {
	files = maps.Clone(files)
	files[path] = text
	return files
}

func TestWorst(t *testing.T) {
	for want, levels := range map[Level][]Level{OK: {OK}, Warn: {Warn, OK}, Fail: {OK, Fail, Warn}} {
		var findings []Finding
		for _, l := range levels {
			findings = append(findings, Finding{Level: l})
		}
		if diff := cmp.Diff(want, Worst(findings)); diff != "" {
			t.Error(diff)
		}
	}
}
