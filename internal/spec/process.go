package spec

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultTerm = "TERM=xterm"
)

func (b *builder) process() error {
	p, c := b.spec.Process, b.in.Container
	var err error
	if p.Args, err = args(c, b.in.Image); err != nil {
		return err
	}
	if p.Env, err = b.env(); err != nil {
		return err
	}
	if p.Cwd, err = workingDir(c, b.in.Image); err != nil {
		return err
	}
	p.Terminal = c.GetTty()
	p.User = specs.User{UID: b.in.User.UID, GID: b.in.User.GID, AdditionalGids: b.in.User.AdditionalGIDs}
	p.NoNewPrivileges = b.sc.GetNoNewPrivs()
	b.oomScoreAdj()
	return nil
}

// args is what runs: the container's command, else the image's entrypoint,
// then the container's args. The image's cmd stands in for the args only where
// the container gives neither command nor args.
func args(c *runtime.ContainerConfig, image *ocispec.ImageConfig) ([]string, error) {
	command, args := c.GetCommand(), c.GetArgs()
	if len(command) == 0 {
		command = image.Entrypoint
		if len(command) == 1 && command[0] == "" { // a builder's way of clearing it
			command = nil
		}
		if len(args) == 0 {
			args = image.Cmd
		}
	}
	out := make([]string, 0, len(command)+len(args))
	out = append(append(out, command...), args...)
	if len(out) == 0 {
		return nil, fmt.Errorf("command: no command specified: set command or args, the image has neither entrypoint nor cmd: %w", errdefs.ErrInvalidArgument)
	}
	if out[0] == "" {
		return nil, fmt.Errorf("command: its first element is empty: name the program to run: %w", errdefs.ErrInvalidArgument)
	}
	for i, arg := range out {
		if strings.ContainsRune(arg, 0) {
			return nil, fmt.Errorf("command: element %d, %s, holds a NUL byte, which no argument can: %w", i, Shown(arg), errdefs.ErrInvalidArgument)
		}
	}
	return out, nil
}

// env puts the image's variables over the defaults and the container's over
// both. A variable keeps the place where it was first set.
func (b *builder) env() ([]string, error) {
	var e environment
	e.set("PATH", defaultPath)
	if b.in.Container.GetTty() {
		e.set("TERM", "xterm")
	}
	hostname := b.in.Sandbox.GetHostname()
	if hostname == "" {
		hostname = b.in.Kernel.Hostname
	}
	if hostname != "" {
		e.set("HOSTNAME", hostname)
	}
	for _, entry := range b.in.Image.Env {
		key, value, ok := strings.Cut(entry, "=")
		if !ok || CheckEnv(key, []byte(value)) != nil {
			b.warn("the image's variable %s is left out: it is not of the form KEY=VALUE", Shown(entry))
			continue
		}
		e.set(key, value)
	}
	for i, kv := range b.in.Container.GetEnvs() {
		if err := CheckEnv(kv.GetKey(), kv.GetValue()); err != nil {
			return nil, fmt.Errorf("envs[%d].%w", i, err)
		}
		e.set(kv.GetKey(), string(kv.GetValue()))
	}
	return e.list, nil
}

type environment struct {
	list  []string
	index map[string]int
}

func (e *environment) set(key, value string) {
	if i, ok := e.index[key]; ok {
		e.list[i] = key + "=" + value
		return
	}
	if e.index == nil {
		e.index = map[string]int{}
	}
	e.index[key] = len(e.list)
	e.list = append(e.list, key+"="+value)
}

func workingDir(c *runtime.ContainerConfig, image *ocispec.ImageConfig) (string, error) {
	if err := checkWorkingDir(c.GetWorkingDir()); err != nil {
		return "", err
	}
	if dir := c.GetWorkingDir(); dir != "" {
		return path.Clean(dir), nil
	}
	return path.Join("/", image.WorkingDir), nil
}

// oomScoreAdj is set always: without one the container would have the
// shim's, which is the last to be killed.
func (b *builder) oomScoreAdj() {
	adj := int(b.in.Container.GetLinux().GetResources().GetOomScoreAdj())
	if own := b.in.Kernel.OOMScoreAdj; adj < own && !b.in.Kernel.sysResource() {
		b.warn("oom_score_adj is raised from %d to the daemon's own %d: berth has no CAP_SYS_RESOURCE", adj, own)
		adj = own
	}
	b.spec.Process.OOMScoreAdj = &adj
}

// ExecProcess is the process of an exec in a container that runs by s.
func ExecProcess(s *specs.Spec, args []string, tty bool) (*specs.Process, error) {
	if len(args) == 0 || args[0] == "" {
		return nil, fmt.Errorf("cmd: no command specified: name the program to run: %w", errdefs.ErrInvalidArgument)
	}
	p := *s.Process
	p.Args = append([]string(nil), args...)
	p.Terminal = tty
	p.ConsoleSize = nil
	var e environment
	for _, entry := range s.Process.Env {
		key, value, _ := strings.Cut(entry, "=")
		e.set(key, value)
	}
	if _, ok := e.index["TERM"]; tty && !ok {
		e.list = append(e.list, defaultTerm)
	}
	p.Env = e.list
	return &p, nil
}
