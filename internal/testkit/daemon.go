package testkit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"berth/internal/host"
	"berth/internal/paths"
)

// Timeouts of what a healthy machine does much faster.
const startTimeout = 30 * time.Second

var stopTimeout = Scaled(30 * time.Second)

// DaemonOptions say how a daemon under test differs from the plain one.
type DaemonOptions struct {
	// External runs containerd as a process of its own.
	External bool
	// Config sets keys of the configuration, as "registry.progress_timeout".
	Config map[string]any
	// Env is added to the daemon's environment, as are those of Restart.
	Env []string
	// NoNetwork writes no CNI configuration.
	NoNetwork bool
	// GVisor adds the handler runsc, whose pods run in gVisor; it is an error
	// where that was not built.
	GVisor bool
}

// A Daemon is a berth under test with directories, bridge, subnet and cgroup
// parent of its own. Its methods are for one goroutine at a time, but for
// Client, which any may call.
type Daemon struct {
	paths.Paths
	// Base holds all of its files but those under State.
	Base string
	// Address is the socket of the CRI.
	Address string
	// ConfDir is CNI's configuration, IPAM the store of host-local.
	ConfDir, IPAM string
	// CertsDir is the registries' configuration (<host>/hosts.toml).
	CertsDir string
	// Logs is where Client puts the logs of pods.
	Logs string
	// Bridge and Subnet are the pods' network.
	Bridge, Subnet, Subnet6 string
	// CgroupParent is above the cgroups of all pods: the directory's name below
	// the root of each hierarchy, a slice with the systemd driver.
	CgroupParent string
	// MetricsAddress is host:port.
	MetricsAddress string

	opts       DaemonOptions
	mark       *os.File // held, see claim
	configFile string
	logFile    string
	containerd *process
	proc       *process

	clientMu sync.Mutex // guards client
	client   *Client
}

// daemons are those of this process, so that what belongs to one is no leak of
// another.
var (
	daemonsMu sync.Mutex // guards daemons
	daemons   = map[*Daemon]bool{}
)

// process is a program that runs.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait, set before done is closed
}

func startProcess(cmd *exec.Cmd, logFile string) (*process, error) {
	log, err := os.OpenFile(logFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Start()
	if cerr := log.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	return p, nil
}

// end sends a signal and waits; what does not go by itself is killed.
func (p *process) end(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTimeout):
	}
	err := fmt.Errorf("%s does not end within %s of %s", p.cmd.Args[0], stopTimeout, s)
	if quit := p.cmd.Process.Signal(syscall.SIGQUIT); quit == nil { // its goroutines go to the log
		select {
		case <-p.done:
			return err
		case <-time.After(5 * time.Second):
		}
	}
	err = errors.Join(err, p.cmd.Process.Kill())
	<-p.done
	return err
}

// NewDaemon makes the directories and the configuration; Start starts it.
// Close ends it and removes everything.
func NewDaemon(opts DaemonOptions) (_ *Daemon, err error) {
	base, err := os.MkdirTemp(filepath.Dir(basePrefix), filepath.Base(basePrefix))
	if err != nil {
		return nil, err
	}
	mark, err := claim(base)
	if err != nil {
		return nil, err
	}
	name := strings.TrimPrefix(base, basePrefix)
	d := &Daemon{
		Paths:        paths.Paths{Root: base + "/root", State: "/run/berth-" + name},
		Base:         base,
		ConfDir:      base + "/net.d",
		IPAM:         base + "/ipam",
		CertsDir:     base + "/certs.d",
		Logs:         base + "/logs",
		Bridge:       "bt" + name,
		CgroupParent: cgroupName(name),
		opts:         opts,
		mark:         mark,
		configFile:   base + "/berth.toml",
		logFile:      base + "/daemon.log",
	}
	d.Bridge = d.Bridge[:min(len(d.Bridge), 15)]
	d.Address = d.State + "/berth.sock"
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	for _, dir := range []string{d.Root, d.State, d.ConfDir, d.CertsDir, d.Logs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	d.Subnet, d.Subnet6 = nextSubnet()
	if d.MetricsAddress, err = freePort(); err != nil {
		return nil, err
	}
	if !opts.NoNetwork {
		if err := d.WriteNetwork(); err != nil {
			return nil, err
		}
	}
	daemonsMu.Lock()
	daemons[d] = true
	daemonsMu.Unlock()
	if opts.GVisor {
		if err := d.gVisor(); err != nil {
			return nil, err
		}
	}
	return d, d.writeConfig()
}

// StartDaemon is NewDaemon and Start for a test, which ends it.
func StartDaemon(t testing.TB, opts DaemonOptions) *Daemon {
	t.Helper()
	d, err := NewDaemon(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the daemon:\n%s", d.Log(200))
		}
		if err := d.Close(); err != nil {
			t.Errorf("closing the daemon: %v", err)
		}
	})
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

// program is the daemon's binary.
func program() (bin, root string, err error) {
	root, err = RepoRoot()
	if err != nil {
		return "", "", err
	}
	bin = os.Getenv("BERTH_BIN")
	if bin == "" {
		bin = root + "/bin/race/berth"
	}
	if _, err := os.Stat(bin); err != nil {
		return "", "", fmt.Errorf("no daemon to test: run \"make build bin/race/berth\" first, or set BERTH_BIN: %w", err)
	}
	return bin, root, nil
}

// libexec gathers what the daemon runs in one directory.
func (d *Daemon) libexec() (string, error) {
	_, root, err := program()
	if err != nil {
		return "", err
	}
	dir := d.Base + "/libexec"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for name, target := range map[string]string{
		"runc": "libexec/runc", "containerd-shim-runc-v2": "libexec/containerd-shim-runc-v2",
		"cni": "libexec/cni", "containerd-shim-berth-v1": "containerd-shim-berth-v1",
		"containerd-shim-runsc-v1": "test/containerd-shim-runsc-v1",
	} {
		if err := os.Symlink(filepath.Join(root, "bin", target), filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func (d *Daemon) writeConfig() error {
	libexec, err := d.libexec()
	if err != nil {
		return err
	}
	config := map[string]any{}
	set := map[string]any{
		"root": d.Root, "state": d.State, "address": d.Address,
		"registry.config_path":  d.CertsDir,
		"runtime.cdi_spec_dirs": []string{d.CDIDir()},
		"network.conf_dir":      d.ConfDir,
		"network.bin_dirs":      []string{libexec + "/cni"},
		"network.default":       false, "network.default_bridge": d.Bridge, "network.default_subnet": d.Subnet,
		"runtime.bin_dir": libexec,
		"cgroup.parent":   "/" + d.CgroupParent,
		"cgroup.driver":   host.CgroupfsDriver,
		"stream.address":  "127.0.0.1:0",
		"metrics.address": d.MetricsAddress,
		"log.level":       "debug",
	}
	if d.opts.External {
		set["containerd.address"] = d.ExternalSocket()
	}
	if Systemd() {
		set["cgroup.parent"], set["cgroup.driver"] = d.CgroupParent, host.SystemdDriver
	}
	maps.Copy(set, d.opts.Config)
	for key, value := range set {
		table := config
		parts := strings.Split(key, ".")
		for _, part := range parts[:len(parts)-1] {
			next, ok := table[part].(map[string]any)
			if !ok {
				next = map[string]any{}
				table[part] = next
			}
			table = next
		}
		table[parts[len(parts)-1]] = value
	}
	text, err := toml.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(d.configFile, text, 0o600)
}

// Libexec is the directory of the programs that the daemon runs: links, which
// a test may replace.
func (d *Daemon) Libexec() string { return d.Base + "/libexec" }

// Configure sets keys as DaemonOptions.Config does, for the next start.
func (d *Daemon) Configure(keys map[string]any) error {
	if d.opts.Config == nil {
		d.opts.Config = map[string]any{}
	}
	maps.Copy(d.opts.Config, keys)
	if err := os.RemoveAll(d.Base + "/libexec"); err != nil {
		return err
	}
	return d.writeConfig()
}

// Command is the daemon's binary with arguments and the daemon's environment.
func (d *Daemon) Command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	bin, _, err := program()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, stageEnv+"=") })
	return cmd, nil
}

// Start starts the daemon, and containerd where it is external and not
// running, and returns when the CRI answers.
func (d *Daemon) Start(ctx context.Context, env ...string) error {
	if err := d.Launch(ctx, env...); err != nil {
		return err
	}
	return d.Ready(ctx)
}

// Launch starts the daemon and does not wait for it.
func (d *Daemon) Launch(ctx context.Context, env ...string) error {
	if d.Running() {
		return errors.New("the daemon runs already")
	}
	if err := d.startContainerd(ctx); err != nil {
		return err
	}
	cmd, err := d.Command(context.WithoutCancel(ctx), "serve", "--config", d.configFile)
	if err != nil {
		return err
	}
	cmd.Env = append(append(cmd.Env, d.opts.Env...), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.proc, err = startProcess(cmd, d.logFile)
	return err
}

// Ready waits until the CRI answers.
func (d *Daemon) Ready(ctx context.Context) error {
	client, err := d.Client()
	if err != nil {
		return err
	}
	err = Poll(ctx, startTimeout, func(ctx context.Context) string {
		if !d.Running() {
			return ""
		}
		ctx, cancel := context.WithTimeout(ctx, Scaled(5*time.Second))
		defer cancel()
		if _, err := client.Version(ctx); err != nil {
			return err.Error()
		}
		return ""
	})
	if err == nil && !d.Running() {
		err = fmt.Errorf("it ended: %w", d.proc.err)
	}
	if err != nil {
		return fmt.Errorf("the daemon does not come up: %w\n%s", err, d.Log(60))
	}
	return nil
}

// Running reports whether the daemon's process is there.
func (d *Daemon) Running() bool {
	if d.proc == nil {
		return false
	}
	select {
	case <-d.proc.done:
		return false
	default:
		return true
	}
}

// CDIDir is where the daemon looks for CDI specs; a test that has some makes it.
func (d *Daemon) CDIDir() string { return d.Base + "/cdi" }

// ConfigFile is the daemon's configuration.
func (d *Daemon) ConfigFile() string { return d.configFile }

// PID is the daemon's.
func (d *Daemon) PID() int { return d.proc.cmd.Process.Pid }

// Ended is closed when the daemon's process has ended.
func (d *Daemon) Ended() <-chan struct{} { return d.proc.done }

// Kill ends the daemon as the kernel would.
func (d *Daemon) Kill() error { return d.end(syscall.SIGKILL) }

// Stop ends the daemon as systemd would.
func (d *Daemon) Stop() error {
	if !d.Running() {
		return nil
	}
	err := d.end(syscall.SIGTERM)
	if code := d.proc.cmd.ProcessState.ExitCode(); err == nil && code != 0 {
		err = fmt.Errorf("the daemon ended with %s\n%s", d.proc.cmd.ProcessState, d.Log(30))
	}
	return err
}

func (d *Daemon) end(s syscall.Signal) error {
	if !d.Running() {
		return nil
	}
	return d.proc.end(s)
}

// Restart stops the daemon and starts it with env.
func (d *Daemon) Restart(ctx context.Context, env ...string) error {
	if err := d.Stop(); err != nil {
		return err
	}
	return d.Start(ctx, env...)
}

// Close ends the daemon and all that it started, and removes its files. It
// fails where the daemon did not end in order, reported a race, or left a
// process or a mount.
func (d *Daemon) Close() error {
	var errs []error
	if d.proc != nil {
		errs = append(errs, d.Stop())
		if race := d.Races(); race != "" {
			errs = append(errs, errors.New(race))
		}
	}
	d.clientMu.Lock()
	if d.client != nil {
		errs = append(errs, d.client.conn.Close())
		d.client = nil
	}
	d.clientMu.Unlock()
	if d.containerd != nil {
		errs = append(errs, d.containerd.end(syscall.SIGTERM))
	}
	errs = append(errs, d.checkGone(), d.clear())
	daemonsMu.Lock()
	delete(daemons, d)
	daemonsMu.Unlock()
	return errors.Join(errs...)
}

// checkGone finds what outlives a daemon that has no pod any more.
func (d *Daemon) checkGone() error {
	return Poll(context.Background(), 5*time.Second, func(context.Context) string {
		left := append(d.processes(), d.mounts()...)
		if len(left) == 0 {
			return ""
		}
		return "left behind:\n" + strings.Join(left, "\n")
	})
}

// Devastate takes away, while no daemon runs, what a reboot would: processes,
// mounts, and all that is on a tmpfs. Rules and links of the network stay.
func (d *Daemon) Devastate() error {
	var err error
	if d.containerd != nil {
		err = d.containerd.end(syscall.SIGKILL)
		d.containerd = nil
	}
	return errors.Join(err, d.killAll(), d.unmountAll(), os.RemoveAll(d.State), os.MkdirAll(d.State, 0o755))
}

// clear removes by force.
func (d *Daemon) clear() error {
	errs := []error{d.killAll(), d.unmountAll(), removeCgroups(d.CgroupParent), d.removeBridge()}
	if os.Getenv("BERTH_TEST_KEEP") != "" {
		fmt.Fprintln(os.Stderr, "kept:", d.Base)
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, os.RemoveAll(d.Base), os.RemoveAll(d.State), d.mark.Close())...)
}
