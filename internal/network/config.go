package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
)

// state is what the configuration directory gave. It never changes once it is
// published: exactly one of conf and err is set.
type state struct {
	conf *conf
	err  error
	// retry: the cause of err is no file, so no event tells when it is gone.
	retry bool
}

// conf is a configuration in use.
type conf struct {
	list    *libcni.NetworkConfigList
	file    string // empty for the built-in network
	builtIn bool
}

func (c *conf) String() string {
	if c.builtIn {
		return fmt.Sprintf("%q (built in)", c.list.Name)
	}
	return fmt.Sprintf("%q (%s)", c.list.Name, c.file)
}

// current is the configuration for new pods.
func (n *Network) current() (*conf, error) {
	st := n.state.Load()
	if st.retry {
		n.load()
		st = n.state.Load()
	}
	return st.conf, st.err
}

// load reads the configuration and publishes it.
func (n *Network) load() {
	n.mu.Lock()
	defer n.mu.Unlock()
	next := n.readLocked()
	last := n.state.Swap(next)
	switch {
	case next.err != nil && (last == nil || last.err == nil || last.err.Error() != next.err.Error()):
		n.opts.Log.Warn("CNI configuration not usable; pods with a network of their own cannot start", "err", next.err)
	case next.err == nil && (last == nil || last.conf == nil || string(last.conf.list.Bytes) != string(next.conf.list.Bytes)):
		n.opts.Log.Info("CNI configuration loaded", "network", next.conf.list.Name, "file", next.conf.file, "built_in", next.conf.builtIn)
	}
}

// readLocked takes the first file in lexical order, as containerd and CRI-O
// do. A file that is broken is not passed over: the next one is another
// network, and pods would join it unasked. The configuration before it is not
// kept either, since the node's administrator has just replaced it.
func (n *Network) readLocked() *state {
	files, err := libcni.ConfFiles(n.opts.ConfDir, []string{".conflist", ".conf", ".json"})
	if err != nil {
		return &state{err: fmt.Errorf("reading CNI configuration directory %s: %w: %w", n.opts.ConfDir, err, errdefs.ErrUnavailable)}
	}
	if len(files) == 0 {
		if !n.opts.Default {
			return &state{err: fmt.Errorf("no CNI configuration in %s: install a network (a file 10-NAME.conflist there), or set network.default = true for a built-in bridge: %w",
				n.opts.ConfDir, errdefs.ErrUnavailable)}
		}
		return n.builtInLocked()
	}
	if err := n.claims.release(); err != nil {
		n.opts.Log.Warn("giving up the name of the built-in network", "err", err)
	}
	file := slices.Min(files)
	list, err := readFile(file)
	if err != nil {
		return &state{err: fmt.Errorf("CNI configuration %s is broken, correct or remove it: %w: %w", file, err, errdefs.ErrFailedPrecondition)}
	}
	return &state{conf: &conf{list: list, file: file}}
}

// readFile reads a list, or a single plugin's configuration as a list of one.
func readFile(file string) (*libcni.NetworkConfigList, error) {
	var list *libcni.NetworkConfigList
	var err error
	if filepath.Ext(file) == ".conflist" {
		list, err = libcni.NetworkConfFromFile(file)
	} else {
		var single *libcni.PluginConfig
		if single, err = libcni.ConfFromFile(file); err == nil {
			list, err = libcni.ConfListFromConf(single)
		}
	}
	if err != nil {
		return nil, err
	}
	if list.Name == "" {
		return nil, errors.New("it has no name")
	}
	return inlined(list)
}

// inlined returns list with every plugin in its bytes, those too that come
// from the directory beside the file: the bytes are what DEL has later.
func inlined(list *libcni.NetworkConfigList) (*libcni.NetworkConfigList, error) {
	var raw map[string]any
	if err := json.Unmarshal(list.Bytes, &raw); err != nil {
		return nil, err
	}
	if plugins, _ := raw["plugins"].([]any); len(plugins) == len(list.Plugins) {
		return list, nil
	}
	var plugins []json.RawMessage
	for _, p := range list.Plugins {
		plugins = append(plugins, p.Bytes)
	}
	raw["plugins"] = plugins
	raw["loadOnlyInlinedPlugins"] = true
	whole, err := json.Marshal(raw)
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(whole)
}

// libcniFor is the libcni that finds a configuration's plugins.
func (n *Network) libcniFor(c *conf) *libcni.CNIConfig {
	if c.builtIn {
		return n.builtIn
	}
	return n.cni
}
