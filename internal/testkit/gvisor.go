package testkit

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
)

// gVisorOptions are of its shim, with the paths of its runtime and of its
// state. Without the last one it keeps a namespace for as long as the machine
// runs; seccomp and raw sockets are off by themselves.
const gVisorOptions = `binary_name = %q
root = %q
[runsc_config]
platform = "systrap"
oci-seccomp = "true"
net-raw = "true"
gofer-network-namespace = "new"
`

// gVisor adds the handler to the configuration, before it is written.
func (d *Daemon) gVisor() error {
	root, err := RepoRoot()
	if err != nil {
		return err
	}
	runsc := filepath.Join(root, "bin/test/runsc")
	for _, path := range []string{runsc, filepath.Join(root, "bin/test/containerd-shim-runsc-v1")} {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("no gVisor to test with: run \"make bin/test/runsc bin/test/containerd-shim-runsc-v1\" first: %w", err)
		}
	}
	options := filepath.Join(d.Base, "runsc.toml")
	if err := os.WriteFile(options, fmt.Appendf(nil, gVisorOptions, runsc, filepath.Join(d.Base, "runsc")), 0o600); err != nil {
		return err
	}
	config := map[string]any{
		"runtime.handlers.runsc.type":        "io.containerd.runsc.v1",
		"runtime.handlers.runsc.sandbox":     "container",
		"runtime.handlers.runsc.config_path": options,
	}
	maps.Copy(config, d.opts.Config)
	d.opts.Config = config
	return nil
}
