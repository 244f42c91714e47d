package engine

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"berth/internal/engine/joined"
)

// Tasks that join a supervisor are not for containerd's task manager: see
// package joined. containerd's task service wants the one runtime named "task".
// So the manager's own plugin is disabled, and what we make around the manager
// is put into the set under that name.

const (
	taskManager   = "task"
	joinedRuntime = "joined"
)

func init() {
	registry.Register(&plugin.Registration{
		Type:     plugins.RuntimePluginV2,
		ID:       joinedRuntime,
		Requires: []plugin.Type{plugins.ShimPlugin, plugins.MountManagerPlugin, plugins.WarningPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			p, ok := ic.Context.Value(partsKey{}).(*parts)
			if !ok {
				return nil, plugin.ErrSkipPlugin
			}
			r, err := openRuntime(ic)
			if err != nil {
				return nil, err
			}
			alias := plugin.Registration{
				Type: plugins.RuntimePluginV2, ID: taskManager,
				InitFn: func(*plugin.InitContext) (any, error) { return r, nil },
			}
			return r, p.set.Add(alias.Init(ic))
		},
	})
}

// BundleDirs are where an embedded containerd may have the bundle of a task in
// Namespace, below its state and its root directory.
func BundleDirs(id string) []string {
	var dirs []string
	for _, runtime := range []string{taskManager, joinedRuntime} {
		dirs = append(dirs, filepath.Join(plugins.RuntimePluginV2.String()+"."+runtime, Namespace, id))
	}
	return dirs
}

// openRuntime makes the runtime around containerd's task manager, which finds
// its directories where they would be without us.
func openRuntime(ic *plugin.InitContext) (*joined.Runtime, error) {
	manager, err := registered(plugins.RuntimePluginV2, taskManager)
	if err != nil {
		return nil, err
	}
	properties := map[string]string{}
	for name, value := range ic.Properties {
		properties[name] = value
	}
	for _, dir := range []string{plugins.PropertyRootDir, plugins.PropertyStateDir} {
		properties[dir] = filepath.Join(filepath.Dir(ic.Properties[dir]), manager.URI())
	}
	inner := plugin.NewContext(ic.Context, ic.Plugins(), properties)
	inner.Config = manager.Config
	instance, err := manager.Init(inner).Instance()
	if err != nil {
		return nil, err
	}
	return joined.New(ic.Properties[plugins.PropertyStateDir], instance.(runtime.PlatformRuntime))
}

// registered is a plugin that came with a package of containerd's.
func registered(kind plugin.Type, id string) (plugin.Registration, error) {
	for _, r := range registry.Graph(func(*plugin.Registration) bool { return false }) {
		if r.Type == kind && r.ID == id {
			return r, nil
		}
	}
	return plugin.Registration{}, fmt.Errorf("plugin %s.%s of containerd is not built in", kind, id)
}
