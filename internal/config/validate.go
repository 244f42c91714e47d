package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	// maxSocketPath is what fits the kernel's sockaddr_un.
	maxSocketPath = 107
	// stateMargin is kept free below the state directory for the names of
	// the sockets in it.
	stateMargin = 24
)

var (
	handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	shimType    = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+\.v[0-9]+$`)
	bridgeName  = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,15}$`)
)

// Validate tells every value that the daemon could not use: its key, the
// value and what to write instead. The error is ErrInvalidArgument.
func (c *Config) Validate() error {
	return errors.Join(slices.Concat(
		c.validatePlaces(),
		c.validateRegistry(),
		c.Network.validate(),
		c.Runtime.validate(),
		c.validateCgroup(),
		c.validateServers(),
		[]error{
			oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error"),
			oneOf("log.format", c.Log.Format, "text", "json"),
		},
	)...)
}

// A mistake is what a user wrote wrong: ErrInvalidArgument, without those
// words in each line.
type mistake string

func (m mistake) Error() string { return string(m) }

// Is makes a mistake ErrInvalidArgument.
func (mistake) Is(target error) bool { return target == errdefs.ErrInvalidArgument }

func invalid(key string, value any, format string, args ...any) error {
	return mistake(fmt.Sprintf("%s: %#v %s", key, value, fmt.Sprintf(format, args...)))
}

func oneOf(key, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return invalid(key, value, "is not one of %s", strings.Join(allowed, ", "))
}

func absolute(key, path string) error {
	if strings.Contains(path, "://") {
		return invalid(key, path, "is not a path; write it without %s", path[:strings.Index(path, "://")+3])
	}
	if !filepath.IsAbs(path) {
		return invalid(key, path, "is not an absolute path; write one that begins with /")
	}
	return nil
}

func absoluteOrEmpty(key, path string) error {
	if path == "" {
		return nil
	}
	return absolute(key, path)
}

func (c *Config) validatePlaces() []error {
	errs := []error{
		directory("root", c.Root),
		directory("state", c.State),
		absolute("address", c.Address),
		absoluteOrEmpty("containerd.address", c.Containerd.Address),
	}
	if len(c.Address) > maxSocketPath {
		errs = append(errs, invalid("address", c.Address, "has %d letters; a socket's path has at most %d", len(c.Address), maxSocketPath))
	}
	if len(c.State) > maxSocketPath-stateMargin {
		errs = append(errs, invalid("state", c.State, "has %d letters; it has at most %d, so that the sockets in it fit the kernel's limit",
			len(c.State), maxSocketPath-stateMargin))
	}
	if within(c.Root, c.State) || within(c.State, c.Root) {
		errs = append(errs, invalid("state", c.State, "and root %q lie in one another; give each a directory of its own", c.Root))
	}
	if c.Containerd.Snapshotter == "" {
		errs = append(errs, invalid("containerd.snapshotter", "", "is empty; name one, such as overlayfs"))
	}
	return errs
}

func directory(key, path string) error {
	if err := absolute(key, path); err != nil {
		return err
	}
	if filepath.Clean(path) == "/" {
		return invalid(key, path, "is the root of the file system; give berth a directory of its own")
	}
	return nil
}

func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

func (c *Config) validateRegistry() []error {
	errs := []error{absoluteOrEmpty("registry.config_path", c.Registry.ConfigPath)}
	for i, p := range c.Registry.Pinned {
		if strings.TrimSuffix(p, "*") == "" || strings.Contains(strings.TrimSuffix(p, "*"), "*") {
			errs = append(errs, invalid(fmt.Sprintf("registry.pinned[%d]", i), p, "is neither an image nor a prefix with one * at its end"))
		}
	}
	if n := c.Registry.MaxConcurrentDownloads; n < 1 {
		errs = append(errs, invalid("registry.max_concurrent_downloads", n, "is less than 1"))
	}
	return append(errs, positive("registry.progress_timeout", c.Registry.ProgressTimeout))
}

func positive(key string, d Duration) error {
	if d.Duration > 0 {
		return nil
	}
	return invalid(key, d.String(), "is not longer than no time; write one such as \"1m\"")
}

func (n *Network) validate() []error {
	errs := []error{absolute("network.conf_dir", n.ConfDir), positive("network.timeout", n.Timeout)}
	for i, dir := range n.BinDirs {
		errs = append(errs, absolute(fmt.Sprintf("network.bin_dirs[%d]", i), dir))
	}
	if !n.Default {
		return errs
	}
	if !bridgeName.MatchString(n.DefaultBridge) || n.DefaultBridge == "." || n.DefaultBridge == ".." {
		errs = append(errs, invalid("network.default_bridge", n.DefaultBridge, "is no name of an interface: 1 to 15 letters, digits, - _ or ."))
	}
	errs = append(errs, subnet("network.default_subnet", n.DefaultSubnet, true, 30))
	if n.DefaultSubnet6 != "" {
		errs = append(errs, subnet("network.default_subnet6", n.DefaultSubnet6, false, 126))
	}
	return errs
}

func subnet(key, value string, v4 bool, longest int) error {
	example := "10.77.0.0/16"
	if !v4 {
		example = "fd00:77::/64"
	}
	p, err := netip.ParsePrefix(value)
	switch {
	case err != nil || p.Addr().Is4() != v4:
		return invalid(key, value, "is not a subnet such as %q", example)
	case p.Bits() > longest:
		return invalid(key, value, "has room for no pod; write a prefix of at most /%d", longest)
	case p.Masked() != p:
		return invalid(key, value, "has bits after its prefix; write %q", p.Masked())
	}
	return nil
}

func (r *Runtime) validate() []error {
	errs := []error{absoluteOrEmpty("runtime.bin_dir", r.BinDir)}
	for i, dir := range r.CDISpecDirs {
		errs = append(errs, absolute(fmt.Sprintf("runtime.cdi_spec_dirs[%d]", i), dir))
	}
	names := make([]string, 0, len(r.Handlers))
	for name := range r.Handlers {
		names = append(names, name)
	}
	sort.Strings(names)
	if _, ok := r.Handlers[r.DefaultHandler]; !ok {
		errs = append(errs, invalid("runtime.default_handler", r.DefaultHandler, "is no handler; there are %s", strings.Join(names, ", ")))
	}
	for _, name := range names {
		h, key := r.Handlers[name], "runtime.handlers."+name
		if !handlerName.MatchString(name) {
			errs = append(errs, invalid("runtime.handlers", name, "is no name of a handler: lower-case letters, digits and - inside, at most 63"))
		}
		switch {
		case h.Type == "":
			errs = append(errs, invalid(key+".type", h.Type, "is empty; name a shim such as \"io.containerd.runc.v2\""))
		case !filepath.IsAbs(h.Type) && !shimType.MatchString(h.Type):
			errs = append(errs, invalid(key+".type", h.Type, "is neither a shim's name such as \"io.containerd.runc.v2\" nor an absolute path"))
		}
		errs = append(errs, absoluteOrEmpty(key+".binary", h.Binary), h.validateSupervisor(key), h.validateSandbox(key), h.validateConfigPath(key))
		errs = append(errs, patterns(key+".pod_annotations", h.PodAnnotations)...)
		errs = append(errs, patterns(key+".container_annotations", h.ContainerAnnotations)...)
	}
	return errs
}

func patterns(key string, list []string) []error {
	var errs []error
	for i, p := range list {
		if _, err := path.Match(p, ""); err != nil || p == "" {
			errs = append(errs, invalid(fmt.Sprintf("%s[%d]", key, i), p, "is no pattern of annotations' keys, such as \"example.com/*\""))
		}
	}
	return errs
}

func (h Handler) validateSupervisor(key string) error {
	switch {
	case h.Type == SupervisorType && h.Binary != "":
		return invalid(key+".binary", h.Binary, "is of no use: type %q calls no runtime", SupervisorType)
	case h.Type == SupervisorType:
		return oneOf(key+".supervisor", h.Supervisor, "", SupervisorNode, SupervisorPod)
	case h.Supervisor != "":
		return invalid(key+".supervisor", h.Supervisor, "is for type %q only", SupervisorType)
	}
	return nil
}

func (h Handler) validateSandbox(key string) error {
	if h.Type == SupervisorType && h.WantsPause() {
		return invalid(key+".sandbox", h.Sandbox, "is for shims of others; type %q needs none", SupervisorType)
	}
	if h.Sandbox == "" {
		return nil
	}
	return oneOf(key+".sandbox", h.Sandbox, SandboxNone, SandboxContainer)
}

func (h Handler) validateConfigPath(key string) error {
	if h.ConfigPath != "" && (h.Type == SupervisorType || h.Type == RuncType) {
		return invalid(key+".config_path", h.ConfigPath, "is of no use: type %q has no file of options", h.Type)
	}
	return absoluteOrEmpty(key+".config_path", h.ConfigPath)
}

func (c *Config) validateCgroup() []error {
	errs := []error{oneOf("cgroup.driver", c.Cgroup.Driver, "auto", "cgroupfs", "systemd")}
	parent := c.Cgroup.Parent
	isSlice := strings.HasSuffix(parent, ".slice") && !strings.Contains(parent, "/")
	switch {
	case parent == "" || isSlice && c.Cgroup.Driver != "cgroupfs":
	case filepath.IsAbs(parent) && c.Cgroup.Driver != "systemd":
		if filepath.Clean(parent) != parent || parent == "/" {
			errs = append(errs, invalid("cgroup.parent", parent, "is not a plain path below /; write one such as \"/berth\""))
		}
	case c.Cgroup.Driver == "systemd":
		errs = append(errs, invalid("cgroup.parent", parent, "is no slice; write one such as \"berth.slice\""))
	default:
		errs = append(errs, invalid("cgroup.parent", parent, "is no absolute path; write one such as \"/berth\""))
	}
	return errs
}

func (c *Config) validateServers() []error {
	errs := []error{
		hostPort("stream.address", c.Stream.Address),
		positive("stream.idle_timeout", c.Stream.IdleTimeout),
	}
	if c.Metrics.Address != "" {
		errs = append(errs, hostPort("metrics.address", c.Metrics.Address))
	}
	return errs
}

func hostPort(key, value string) error {
	_, port, err := net.SplitHostPort(value)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return invalid(key, value, "is not host:port, such as \"127.0.0.1:0\"")
	}
	return nil
}
