// Package network attaches pods to their network through CNI plugins.
//
// Purpose: it chooses the configuration (the first file of a watched
// directory, or a built-in bridge network where there is none), calls the
// plugins through libcni and undoes what they did, whatever happened between.
//
// Invariants:
//   - What an ADD is about to do is on disk before its first plugin runs, and
//     what it did until its DEL is through. So a DEL uses the configuration
//     that the ADD used, also when the daemon was killed between two plugins
//     or the configuration has changed since.
//   - An ADD that fails, or whose caller goes away, is followed by a DEL.
//   - Every plugin has a deadline. One that misses it is killed with its
//     process group.
//   - Plugins are called in one place, (*pluginExec).ExecPlugin, behind libcni's
//     invoke.Exec: in process by package builtin, or as programs.
//
// Concurrency: a Network is safe for concurrent use, except that the caller
// serialises the calls for one pod. No lock is held while a plugin runs. One
// goroutine watches the configuration directory; Close ends it and waits.
//
// FORMAT.md describes the files below Options.CacheDir.
package network

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"berth/internal/network/builtin"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/fsnotify/fsnotify"
)

// Defaults of Options.
const (
	DefaultTimeout = 60 * time.Second
	DefaultBridge  = "berth0"
	DefaultSubnet  = "10.77.0.0/16"
)

// ifName is the name of a pod's interface, the one that the kubelet and its
// statistics know.
const ifName = "eth0"

// Options configure a Network.
type Options struct {
	// ConfDir holds the CNI configuration. Required; it need not exist yet.
	ConfDir string
	// BinDirs are searched for plugins, first to last. Required. The built-in
	// network searches them last to first: berth's own come last, and their
	// versions are known.
	BinDirs []string
	// CacheDir is this daemon's own. Required.
	CacheDir string
	// Default: use the built-in bridge network while ConfDir holds no
	// configuration.
	Default bool
	// DefaultBridge and DefaultSubnet are those of the built-in network. Two
	// daemons on one machine need different ones.
	DefaultBridge, DefaultSubnet string
	// DefaultSubnet6, where set, gives its pods an IPv6 address too.
	DefaultSubnet6 string
	// Exclusive: no other runtime attaches pods to the networks of ConfDir. Only
	// then GC tells their plugins which attachments are valid, for they drop
	// all others, those of another runtime too.
	Exclusive bool
	// InProcess: plugins that package builtin has are not executed, where it
	// supports their configuration.
	InProcess bool
	// Timeout bounds each ADD, DEL, CHECK, STATUS and GC with all its plugins.
	Timeout time.Duration
	// Log is required.
	Log *slog.Logger
}

// Network attaches pods to the network that is configured.
type Network struct {
	opts Options
	// cni searches BinDirs in their order; builtIn, for the built-in network,
	// backwards.
	cni, builtIn *libcni.CNIConfig
	exec         *pluginExec
	settleGrace  time.Duration

	state atomic.Pointer[state]

	mu       sync.Mutex // guards podCIDR and claims; serialises load
	podCIDR  []string   // from SetPodCIDR; empty until then
	claims   claims
	watcher  *fsnotify.Watcher
	watching sync.WaitGroup

	statusCache statusCache
}

// New reads the configuration and watches it. A configuration that is missing
// or broken is no error here: Status and Add tell of it.
func New(o Options) (*Network, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	n := &Network{opts: o, settleGrace: settleGrace, exec: &pluginExec{programs: programs{log: o.Log}}}
	if o.InProcess {
		n.exec.inProcess = builtin.New(func() invoke.Exec { return n.exec }, o.Log)
	}
	n.cni = libcni.NewCNIConfigWithCacheDir(o.BinDirs, o.CacheDir, n.exec)
	own := slices.Clone(o.BinDirs)
	slices.Reverse(own)
	n.builtIn = libcni.NewCNIConfigWithCacheDir(own, o.CacheDir, n.exec)
	var err error
	if n.podCIDR, err = n.readPodCIDR(); err != nil {
		return nil, err
	}
	if err := n.watch(); err != nil {
		return nil, err
	}
	return n, nil
}

// Close stops watching. Pods keep their network. Closing twice is safe.
func (n *Network) Close() error {
	err := n.watcher.Close()
	n.watching.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.state.Store(&state{err: fmt.Errorf("the network was closed: %w", errdefs.ErrUnavailable)})
	return errors.Join(err, n.claims.release(), n.exec.close())
}

func (o *Options) complete() error {
	for _, dir := range append([]string{o.ConfDir, o.CacheDir}, o.BinDirs...) {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("network: directory %q is not absolute: %w", dir, errdefs.ErrInvalidArgument)
		}
	}
	if len(o.BinDirs) == 0 {
		return fmt.Errorf("network: no directory of plugins (network.bin_dirs): %w", errdefs.ErrInvalidArgument)
	}
	o.ConfDir = filepath.Clean(o.ConfDir)
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.DefaultBridge == "" {
		o.DefaultBridge = DefaultBridge
	}
	if o.DefaultSubnet == "" {
		o.DefaultSubnet = DefaultSubnet
	}
	if len(o.DefaultBridge) > maxLinkName {
		return fmt.Errorf("network.default_bridge %q is longer than %d characters: %w", o.DefaultBridge, maxLinkName, errdefs.ErrInvalidArgument)
	}
	if _, err := parseSubnets(o.subnets()); err != nil {
		return fmt.Errorf("network.default_subnet: %w", err)
	}
	return nil
}

func (o *Options) subnets() []string {
	if o.DefaultSubnet6 == "" {
		return []string{o.DefaultSubnet}
	}
	return []string{o.DefaultSubnet, o.DefaultSubnet6}
}
