// Package config holds the daemon's options: their defaults, the TOML file
// that changes them and the rules that they obey.
//
// A configuration goes one way: defaults, then the file over them, then flags
// (by the caller), then Validate. A key that is not known is an error, so that
// a spelling mistake never silently leaves a default in place. default.toml
// documents every key; a test holds it equal to Default.
//
// A Config is a plain value: it is not changed once the daemon runs and may
// then be read from everywhere. The package starts nothing.
package config

import (
	_ "embed"
	"path/filepath"
	"time"
)

// DefaultPath is the file that Load reads where none is named.
const DefaultPath = "/etc/berth/config.toml"

// A Config is what a daemon is started with. The comments in default.toml say
// what each key does.
type Config struct {
	Root    string `toml:"root"`
	State   string `toml:"state"`
	Address string `toml:"address"`

	Containerd Containerd `toml:"containerd"`
	Registry   Registry   `toml:"registry"`
	Network    Network    `toml:"network"`
	Runtime    Runtime    `toml:"runtime"`
	Cgroup     Cgroup     `toml:"cgroup"`
	Stream     Stream     `toml:"stream"`
	Metrics    Metrics    `toml:"metrics"`
	Log        Log        `toml:"log"`
}

// Containerd says which containerd keeps images and runs tasks.
type Containerd struct {
	// Address is the socket of a containerd that runs already; empty: the
	// embedded one.
	Address     string `toml:"address"`
	Snapshotter string `toml:"snapshotter"`
}

// Registry says how images are pulled.
type Registry struct {
	ConfigPath             string   `toml:"config_path"`
	Pinned                 []string `toml:"pinned"`
	MaxConcurrentDownloads int      `toml:"max_concurrent_downloads"`
	ProgressTimeout        Duration `toml:"progress_timeout"`
}

// Network says where CNI is configured, and what is used where it is not.
type Network struct {
	ConfDir string `toml:"conf_dir"`
	// BinDirs does not hold the directory installed with berth; CNIBinDirs
	// adds it.
	BinDirs []string `toml:"bin_dirs"`
	// Exclusive: no other runtime uses the networks of ConfDir.
	Exclusive      bool     `toml:"exclusive"`
	Default        bool     `toml:"default"`
	DefaultBridge  string   `toml:"default_bridge"`
	DefaultSubnet  string   `toml:"default_subnet"`
	DefaultSubnet6 string   `toml:"default_subnet6"`
	Timeout        Duration `toml:"timeout"`
	// Builtin: plugins that berth has itself are not executed.
	Builtin bool `toml:"builtin"`
}

// Runtime says what runs containers.
type Runtime struct {
	DefaultHandler string             `toml:"default_handler"`
	BinDir         string             `toml:"bin_dir"`
	CDISpecDirs    []string           `toml:"cdi_spec_dirs"`
	Handlers       map[string]Handler `toml:"handlers"`
}

// A Handler is one way to run containers, named by a RuntimeClass.
type Handler struct {
	// Type is containerd's name of the shim ("io.containerd.runc.v2"), or
	// the absolute path of its binary.
	Type string `toml:"type"`
	// Binary is the OCI runtime that the shim calls; empty: the runc
	// installed with berth.
	Binary string `toml:"binary"`
	// Supervisor says how many pods share a supervisor, SupervisorNode or
	// SupervisorPod; it is for SupervisorType only.
	Supervisor string `toml:"supervisor"`
	// Sandbox says what the shim wants of a pod before its containers,
	// SandboxNone or SandboxContainer; it is for shims only.
	Sandbox string `toml:"sandbox"`
	// ConfigPath is a file of the shim's own options.
	ConfigPath                   string `toml:"config_path"`
	PrivilegedWithoutHostDevices bool   `toml:"privileged_without_host_devices"`
	// PodAnnotations and ContainerAnnotations are patterns, as of path.Match.
	PodAnnotations       []string `toml:"pod_annotations"`
	ContainerAnnotations []string `toml:"container_annotations"`
}

const (
	// SupervisorType is the type of handlers whose containers berth's own
	// supervisor runs.
	SupervisorType = "io.containerd.berth.v1"
	// RuncType is that of handlers whose containers containerd's shim for runc
	// runs.
	RuncType = "io.containerd.runc.v2"
	// SupervisorNode has all pods share one, SupervisorPod gives each its own.
	SupervisorNode = "node"
	SupervisorPod  = "pod"
	// SandboxNone: containers need nothing but the pod's namespaces.
	// SandboxContainer: each pod has one more container, the first and last one.
	SandboxNone      = "none"
	SandboxContainer = "container"
)

// WantsPause tells whether the handler's shim wants a sandbox container.
func (h Handler) WantsPause() bool { return h.Sandbox == SandboxContainer }

// SupervisorOf is the handler's value of supervisor; "" where a shim runs its
// containers.
func (h Handler) SupervisorOf() string {
	switch {
	case h.Type != SupervisorType:
		return ""
	case h.Supervisor == "":
		return SupervisorNode
	}
	return h.Supervisor
}

// Cgroup says who makes cgroups and where.
type Cgroup struct {
	Driver string `toml:"driver"`
	// Parent is for pods whose request names no parent; empty: see
	// CgroupParent.
	Parent string `toml:"parent"`
}

// Stream is the server of exec, attach and port-forward.
type Stream struct {
	Address     string   `toml:"address"`
	IdleTimeout Duration `toml:"idle_timeout"`
}

// Metrics is the HTTP server of metrics; it is off where Address is empty.
type Metrics struct {
	Address string `toml:"address"`
}

// Log is the daemon's own log, on standard error.
type Log struct {
	Level  string `toml:"level"`
	Format string `toml:"format"`
}

//go:embed default.toml
var document []byte

// Document is the default configuration as a TOML file that documents every
// key.
func Document() []byte { return append([]byte(nil), document...) }

// Default is the configuration of a daemon with no file and no flags.
func Default() *Config {
	return &Config{
		Root:       "/var/lib/berth",
		State:      "/run/berth",
		Address:    "/run/berth/berth.sock",
		Containerd: Containerd{Snapshotter: "overlayfs"},
		Registry: Registry{
			ConfigPath:             "/etc/berth/certs.d",
			Pinned:                 []string{},
			MaxConcurrentDownloads: 6,
			ProgressTimeout:        Duration{5 * time.Minute},
		},
		Network: Network{
			ConfDir:       "/etc/cni/net.d",
			BinDirs:       []string{"/opt/cni/bin"},
			Default:       true,
			DefaultBridge: "berth0",
			DefaultSubnet: "10.77.0.0/16",
			Timeout:       Duration{time.Minute},
			Builtin:       true,
		},
		Runtime: Runtime{
			DefaultHandler: "berth",
			CDISpecDirs:    []string{"/etc/cdi", "/var/run/cdi"},
			Handlers: map[string]Handler{
				"berth": {Type: SupervisorType, Supervisor: SupervisorNode, PodAnnotations: []string{}, ContainerAnnotations: []string{}},
				"runc":  {Type: RuncType, PodAnnotations: []string{}, ContainerAnnotations: []string{}},
			},
		},
		Cgroup: Cgroup{Driver: "auto"},
		Stream: Stream{Address: "127.0.0.1:0", IdleTimeout: Duration{4 * time.Hour}},
		Log:    Log{Level: "info", Format: "text"},
	}
}

// Libexec is the directory of the programs installed with berth: runc, shims
// and, in cni/, plugins. The key runtime.bin_dir decides; without it,
// "libexec" beside executable (a build tree) where that exists, else
// "../libexec/berth" (an installation). executable is the running program's
// own path, as os.Executable gives it.
func (c *Config) Libexec(executable string) string {
	if c.Runtime.BinDir != "" {
		return c.Runtime.BinDir
	}
	if real, err := filepath.EvalSymlinks(executable); err == nil {
		executable = real
	}
	dir := filepath.Dir(executable)
	if built := filepath.Join(dir, "libexec"); isDir(built) {
		return built
	}
	return filepath.Join(filepath.Dir(dir), "libexec", "berth")
}

// CNIBinDirs are the directories in which CNI plugins are looked up, in
// order: the configured ones, then the one installed with berth.
func (c *Config) CNIBinDirs(executable string) []string {
	dirs := append([]string(nil), c.Network.BinDirs...)
	return append(dirs, filepath.Join(c.Libexec(executable), "cni"))
}

// CgroupParent is the cgroup of pods whose request names none, in the terms
// of a driver ("cgroupfs" or "systemd").
func (c *Config) CgroupParent(driver string) string {
	switch {
	case c.Cgroup.Parent != "":
		return c.Cgroup.Parent
	case driver == "systemd":
		return "berth.slice"
	}
	return "/berth"
}

// RuncBinary is the OCI runtime of a handler: the handler's own, else the one
// installed with berth.
func (c *Config) RuncBinary(h Handler, executable string) string {
	if h.Binary != "" {
		return h.Binary
	}
	return filepath.Join(c.Libexec(executable), "runc")
}
