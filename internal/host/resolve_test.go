package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestResolveIn(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "a/file"), nil, 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "etc/passwd"), nil, 0o600))
	for name, target := range map[string]string{
		"abs": "/a/b", "up": "../../../../etc/passwd", "a/up": "../etc", "loop": "loop", "gone": "nothing", "proc": "/proc/self/root",
	} {
		must(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	for name, want := range map[string]string{
		".": "", "a": "/a", "a/b": "/a/b", "a//b/": "/a/b", "a/file": "/a/file", "abs": "/a/b", "up": "/etc/passwd", "a/up/passwd": "/etc/passwd",
		"../../a": "/a", "/a/b": "/a/b",
	} {
		if got, err := ResolveIn(dir, name); err != nil || got != dir+want {
			t.Errorf("%s: got %s, %v; want %s", name, got, err, dir+want)
		}
	}
	for _, name := range []string{"gone", "x", "a/file/x", "a/x/y"} {
		if got, err := ResolveIn(dir, name); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %s, %v", name, got, err)
		}
	}
	if got, err := ResolveIn(dir, "loop"); err == nil {
		t.Errorf("loop: got %s", got)
	}
	if _, err := ResolveIn(filepath.Join(dir, "no"), "x"); err == nil {
		t.Error("no directory: no error")
	}
}
