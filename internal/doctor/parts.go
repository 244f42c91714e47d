package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/config"
	"berth/internal/version"
)

// programTimeout bounds a program that is asked for its version.
const programTimeout = 10 * time.Second

// cni looks at the network configuration that would be used, and whether its
// plugins are installed.
func (e *exam) cni() {
	network := e.Config.Network
	dirs := e.Config.CNIBinDirs(e.Executable)
	file, plugins, err := firstConflist(network.ConfDir)
	switch {
	case err != nil:
		e.fail("CNI", "put it right or remove it; what comes first by name is used", "%v", err)
		return
	case file == "" && !network.Default:
		e.fail("CNI", "install a network (a .conflist there), or set network.default = true", "%s has no configuration and network.default is off", network.ConfDir)
		return
	case file == "":
		file, plugins = "the built-in default network", []string{"bridge", "host-local", "portmap"}
	}
	var missing []string
	for _, plugin := range plugins {
		if findIn(dirs, plugin) == "" && !slices.Contains(missing, plugin) {
			missing = append(missing, plugin)
		}
	}
	if len(missing) > 0 {
		e.fail("CNI", "install them (make install brings those of the default network), or add their directory to network.bin_dirs",
			"%s: plugins %s are in none of %s", file, strings.Join(missing, ", "), strings.Join(dirs, ", "))
		return
	}
	e.ok("CNI", "%s: plugins %s", file, strings.Join(plugins, ", "))
}

// firstConflist is the first configuration of a directory by its name, and the
// plugins that it calls; "" where there is none.
func firstConflist(dir string) (file string, plugins []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, nil
	}
	if err != nil {
		return "", nil, err
	}
	var names []string
	for _, entry := range entries {
		if slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(entry.Name())) {
			names = append(names, entry.Name())
		}
	}
	if len(names) == 0 {
		return "", nil, nil
	}
	sort.Strings(names)
	file = filepath.Join(dir, names[0])
	text, err := os.ReadFile(file)
	if err != nil {
		return file, nil, err
	}
	plugins, err = pluginsOf(text)
	if err != nil {
		return file, nil, fmt.Errorf("%s: %w", file, err)
	}
	return file, plugins, nil
}

// pluginsOf are the programs that a CNI configuration calls, IPAM included.
func pluginsOf(text []byte) ([]string, error) {
	type plugin struct {
		Type string `json:"type"`
		IPAM struct {
			Type string `json:"type"`
		} `json:"ipam"`
	}
	var conf struct {
		plugin
		Plugins []plugin `json:"plugins"`
	}
	if err := json.Unmarshal(text, &conf); err != nil {
		return nil, err
	}
	var names []string
	for _, p := range append([]plugin{conf.plugin}, conf.Plugins...) {
		for _, name := range []string{p.Type, p.IPAM.Type} {
			if name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	if len(names) == 0 {
		return nil, errors.New("it names no plugin")
	}
	return names, nil
}

// findIn is the path of a program in the first directory that has it.
func findIn(dirs []string, name string) string {
	for _, dir := range dirs {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return ""
}

// programs run containers.
func (e *exam) programs() {
	libexec := e.Config.Libexec(e.Executable)
	const advice = "install berth whole (make install), or set runtime.bin_dir"
	if path := findIn([]string{libexec}, "containerd-shim-berth-v1"); path == "" {
		if findIn([]string{filepath.Dir(e.Executable)}, "containerd-shim-berth-v1") == "" {
			e.fail("supervisor", advice, "containerd-shim-berth-v1 is not in %s", libexec)
		} else {
			e.ok("supervisor", "%s", filepath.Join(filepath.Dir(e.Executable), "containerd-shim-berth-v1"))
		}
	} else {
		e.ok("supervisor", "%s", path)
	}
	for _, name := range sortedKeys(e.Config.Runtime.Handlers) {
		handler := e.Config.Runtime.Handlers[name]
		if handler.SupervisorOf() != "" {
			continue // looked at above
		}
		check := "runtime " + name
		report := e.warn
		if name == e.Config.Runtime.DefaultHandler {
			report = e.fail
		}
		shim := findShim(handler.Type, libexec)
		if shim == "" {
			report(check, advice, "the shim of %s is neither in %s nor in PATH", handler.Type, libexec)
			continue
		}
		if path := handler.ConfigPath; path != "" {
			if _, err := os.Stat(path); err != nil {
				report(check, "see runtime.handlers."+name+".config_path", "the options of its shim: %v", err)
				continue
			}
		}
		if handler.Type != config.RuncType {
			e.ok(check, "%s", shim)
			continue
		}
		version, err := e.versionOf(e.Config.RuncBinary(handler, e.Executable))
		if err != nil {
			report(check, advice, "%v", err)
			continue
		}
		e.ok(check, "%s, %s", version, shim)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for key := range m {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}

// findShim is the binary of a runtime type, which is the path of one or a name
// such as io.containerd.runc.v2.
func findShim(kind, libexec string) string {
	if filepath.IsAbs(kind) {
		path, err := exec.LookPath(kind)
		if err != nil {
			return ""
		}
		return path
	}
	parts := strings.Split(kind, ".")
	if len(parts) < 2 {
		return ""
	}
	name := "containerd-shim-" + strings.Join(parts[len(parts)-2:], "-")
	if path := findIn([]string{libexec}, name); path != "" {
		return path
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	return path
}

// versionOf is the first line that a program prints for --version.
func (e *exam) versionOf(path string) (string, error) {
	ctx, cancel := context.WithTimeout(e.ctx, programTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", path, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line, nil
}

// What is left on a disk below which things go wrong, soon or now.
const (
	diskWarn = 2 << 30
	diskFail = 200 << 20
	// stateFail is for the state directory, which holds little.
	stateFail = 4 << 20
)

// disk looks at the places of images and containers.
func (e *exam) disk() {
	dir := nearest(e.Config.Root)
	check := "disk " + e.Config.Root
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		e.fail(check, "see that it can be read", "%v", err)
		return
	}
	free := st.Bavail * uint64(st.Bsize)
	info, err := os.Stat(dir)
	if err != nil {
		e.fail(check, "see that it can be read", "%v", err)
		return
	}
	switch {
	case st.Flags&unix.ST_RDONLY != 0:
		e.fail(check, `put "root" on a disk that can be written`, "%s is mounted read-only", dir)
	case st.Flags&unix.ST_NOEXEC != 0:
		e.fail(check, `remount it without noexec, or put "root" elsewhere: containers' programs lie there`, "%s is mounted noexec", dir)
	case free < diskFail:
		e.fail(check, "make room, or put \"root\" on a larger disk", "%d MiB free", free>>20)
	case st.Files > 0 && st.Ffree < 10_000:
		e.fail(check, "remove files; images have many", "%d inodes free", st.Ffree)
	case free < diskWarn:
		e.warn(check, "make room, or put \"root\" on a larger disk", "%d MiB free", free>>20)
	case st.Flags&(unix.ST_NOSUID|unix.ST_NODEV) != 0:
		e.warn(check, "remount it without nosuid and nodev: set-user-ID programs and devices of images do not work", "%s is mounted nosuid or nodev", dir)
	case dir == e.Config.Root && info.Mode().Perm()&0o022 != 0:
		e.fail(check, "chmod go-w "+dir, "others may write to it (mode %s)", info.Mode().Perm())
	default:
		e.ok(check, "%.1f GiB free", float64(free)/(1<<30))
	}
	e.stateDisk()
}

// stateDisk looks at the place of sockets, pipes and mounts.
func (e *exam) stateDisk() {
	check, dir := "disk "+e.Config.State, nearest(e.Config.State)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		e.fail(check, "see that it can be read", "%v", err)
		return
	}
	free := st.Bavail * uint64(st.Bsize)
	switch {
	case free < stateFail || st.Files > 0 && st.Ffree < 1000:
		e.fail(check, "make room: df -h "+dir+"; df -i "+dir, "%d MiB and %d inodes free", free>>20, st.Ffree)
	case st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC:
		e.warn(check, `put "state" on a tmpfs, as /run is: what is there must be gone after a reboot`, "%s is not on a tmpfs", dir)
	default:
		e.ok(check, "%d MiB free on a tmpfs", free>>20)
	}
}

// daemon asks the one that runs, if one does.
func (e *exam) daemon() {
	if e.Probe == nil {
		return
	}
	running, problems, err := e.Probe(e.ctx)
	ours := version.Name + " " + version.Version()
	switch {
	case err != nil:
		e.warn("daemon", "", "%v", err) // the error says what to do
	case !strings.HasPrefix(running, version.Name+" "):
		e.fail("daemon", "stop it and start berth, or give each a socket of its own (address)", "another runtime answers at the socket: %s", running)
	case len(problems) > 0:
		e.fail("daemon", "its log says more: journalctl -u berth", "%s: %s", running, strings.Join(problems, "; "))
	case running != ours:
		e.warn("daemon", "systemctl restart berth: its containers run on", "%s answers and is ready, but %s is installed", running, ours)
	default:
		e.ok("daemon", "%s answers and is ready", running)
	}
}
