package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"

	"berth/internal/config"
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
		{"oldest kernel", map[string]string{"proc/sys/kernel/osrelease": "5.11.0"}, func(e *exam) func() { return e.kernel }, "ok kernel: Linux 5.11.0"},
		{"short release", map[string]string{"proc/sys/kernel/osrelease": "7.0-rc1+"}, func(e *exam) func() { return e.kernel }, "ok kernel: Linux 7.0-rc1+"},
		{"odd release", map[string]string{"proc/sys/kernel/osrelease": "mine"}, func(e *exam) func() { return e.kernel }, `warn kernel: release "mine" is not understood`},
		{"namespaces", nil, func(e *exam) func() { return e.namespaces }, "ok namespaces: mount, network, IPC, UTS, PID, cgroup"},
		{"no IPC namespaces", map[string]string{"proc/self/ns/ipc": "-"}, func(e *exam) func() { return e.namespaces }, "fail namespaces: the kernel has no ipc namespaces"},
		{"user namespaces off", map[string]string{"proc/sys/user/max_user_namespaces": "0"}, func(e *exam) func() { return e.userNamespaces }, "ok user namespaces: not used: berth refuses pods with hostUsers: false so far (the kernel allows 0)"},
		{"no user namespaces", map[string]string{"proc/self/ns/user": "-"}, func(e *exam) func() { return e.userNamespaces }, "ok user namespaces: not used: berth refuses"},
		{"no seccomp", map[string]string{"proc/sys/kernel/seccomp/actions_avail": "-"}, func(e *exam) func() { return e.seccomp }, "warn seccomp: the kernel has none"},
		{"modules", map[string]string{"sys/kernel/security/lsm": "capability,apparmor"}, func(e *exam) func() { return e.securityModules }, "ok security modules: capability,apparmor"},
		{"no forwarding", map[string]string{"proc/sys/net/ipv4/ip_forward": "0"}, func(e *exam) func() { return e.forwarding }, "warn IP forwarding: net.ipv4.ip_forward is off"},
		{"few inotify instances", map[string]string{"proc/sys/fs/inotify/max_user_instances": "16"}, func(e *exam) func() { return e.limits }, "warn limits: fs.inotify.max_user_instances is 16"},
		{"cgroup v2", nil, func(e *exam) func() { return e.cgroups }, "ok cgroups: version 2, driver cgroupfs, controllers [cpu cpuset hugetlb io memory pids]"},
		{"no memory controller", map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io hugetlb pids"}, func(e *exam) func() { return e.cgroups },
			"fail cgroups: version 2, driver cgroupfs, controllers [cpu cpuset hugetlb io pids]: without [memory]"},
		{"no hugetlb controller", map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids"}, func(e *exam) func() { return e.cgroups },
			"warn cgroups: version 2, driver cgroupfs, controllers [cpu cpuset io memory pids]: without [hugetlb]"},
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
	for _, check := range []func(){e.overlay, e.links, e.firewall} {
		check()
	}
	for _, f := range e.findings {
		if f.Level == Fail {
			t.Errorf("%s fails on this machine: %s", f.Check, f.Detail)
		}
	}
	if len(e.findings) != 3 {
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
}

func TestDaemon(t *testing.T) {
	for _, test := range []struct {
		problems []string
		err      error
		want     string
	}{
		{nil, nil, "ok daemon: berth 1 answers and is ready"},
		{[]string{"NetworkReady is false: no CNI"}, nil, "fail daemon: berth 1: NetworkReady is false: no CNI"},
		{nil, errors.New("no daemon"), "warn daemon: no daemon"},
	} {
		e := &exam{ctx: t.Context(), Options: Options{Probe: func(context.Context) (string, []string, error) { return "berth 1", test.problems, test.err }}}
		e.daemon()
		if got := string(e.findings[0].Level) + " daemon: " + e.findings[0].Detail; got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
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
