package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/internal/config"
	"berth/internal/paths"
)

func TestDirectoriesAreNarrow(t *testing.T) {
	want := map[string]string{
		"root": "drwx--x--x", "root/sandboxes": "drwx------", "root/containers": "drwx------",
		"state": "drwx--x--x", "state/sandboxes": "drwx------", "state/containers": "drwx------",
	}
	for name, before := range map[string]os.FileMode{"none is there": 0, "all are there, and wide": 0o777} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for sub := range want {
				path := filepath.Join(dir, sub)
				if before == 0 {
					continue
				}
				if err := os.MkdirAll(path, before); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(path, before); err != nil { // whatever the umask
					t.Fatal(err)
				}
			}
			p := &parts{Options: Options{Config: &config.Config{}}, paths: paths.Paths{Root: dir + "/root", State: dir + "/state"}}
			if err := p.openDirectories(t.Context()); err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for sub := range want {
				info, err := os.Stat(filepath.Join(dir, sub))
				if err != nil {
					t.Fatal(err)
				}
				got[sub] = fmt.Sprint(info.Mode())
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if err := p.close(); err != nil {
				t.Error(err)
			}
		})
	}
}
