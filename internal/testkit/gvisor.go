package testkit

import (
	"fmt"
	"os"
	"path/filepath"
)

// GVisor adds to the daemon's configuration the handler runsc, whose pods run
// in gVisor. The daemon does not run yet. It is an error where gVisor was not
// built.
func (d *Daemon) GVisor() error {
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
	text := fmt.Sprintf("binary_name = %q\nroot = %q\n[runsc_config]\nplatform = \"systrap\"\n", runsc, filepath.Join(d.State, "runsc"))
	if err := os.WriteFile(options, []byte(text), 0o600); err != nil {
		return err
	}
	return d.Configure(map[string]any{
		"runtime.handlers.runsc.type":        "io.containerd.runsc.v1",
		"runtime.handlers.runsc.sandbox":     "container",
		"runtime.handlers.runsc.config_path": options,
	})
}
