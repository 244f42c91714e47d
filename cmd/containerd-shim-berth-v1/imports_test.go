package main

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// mayImport is what the supervisor links beyond the standard library. One runs
// beside every daemon and one in every pod that shares a PID namespace, so a
// package that is added here is worth its memory.
var mayImport = []string{
	"berth/cmd/containerd-shim-berth-v1",
	"berth/internal/supervisor/hold",
	"berth/internal/supervisor/podinit",
	"golang.org/x/sys/unix",
}

// mayNotImport is what it never links, whatever the list above becomes.
var mayNotImport = []string{
	"github.com/containerd/containerd/v2/client",
	"google.golang.org/grpc",
	"k8s.io/",
	"net/http",
	"modernc.org/sqlite",
}

// maxSize is of the stripped program, in bytes.
const maxSize = 4 << 20

func TestImports(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{else}}std {{.ImportPath}}{{end}}", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{}
	for _, p := range mayImport {
		allowed[p] = true
	}
	for _, p := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		name, std := strings.CutPrefix(p, "std ")
		for _, bad := range mayNotImport {
			if strings.HasPrefix(name, bad) {
				t.Errorf("links %s", name)
			}
		}
		if !std && !allowed[name] {
			t.Errorf("links %s, which is not on the list", name)
		}
		delete(allowed, name)
	}
	if diff := cmp.Diff(map[string]bool{}, allowed); diff != "" {
		t.Errorf("on the list, but not linked (-want +got):\n%s", diff)
	}
}

func TestProgram(t *testing.T) {
	program := filepath.Join(t.TempDir(), "shim")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	fi, err := os.Stat(program)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Size() > maxSize {
		t.Errorf("%d bytes, want at most %d", fi.Size(), maxSize)
	}
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("it is not linked statically")
		}
	}
	out, err := exec.Command(program).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "started by berth") {
		t.Errorf("without arguments: %v, %s", err, out)
	}
}
