package main

import (
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
)

// mayImport is what the supervisor links beyond the standard library: packages
// of berth, and modules by why they are there. One runs beside every daemon, so
// what is added here is worth its memory.
var mayImport = map[string]string{
	"berth/cmd/containerd-shim-berth-v1": "",
	"berth/internal/logs":                "",
	"berth/internal/supervisor/entry":    "",
	"berth/internal/supervisor/hold":     "",
	"berth/internal/supervisor/publish":  "",
	"berth/internal/supervisor/podinit":  "",
	"berth/internal/supervisor/serve":    "",
	"berth/internal/supervisor/watch":    "",
	"berth/internal/supervisor/wire":     "",
	"golang.org/x/sys":                   "",

	"github.com/containerd/containerd/api":      "the Task API and the events",
	"github.com/containerd/errdefs":             "",
	"github.com/containerd/errdefs/pkg":         "kinds of errors over ttrpc",
	"github.com/containerd/ttrpc":               "",
	"google.golang.org/protobuf":                "",
	"github.com/containerd/log":                 "of ttrpc",
	"github.com/opencontainers/go-digest":       "of the Task API",
	"github.com/opencontainers/image-spec":      "of the Task API",
	"google.golang.org/grpc":                    "of ttrpc: codes and status",
	"google.golang.org/genproto/googleapis/rpc": "of ttrpc",
	"github.com/containerd/containerd/v2":       "mounts",
	"github.com/containerd/continuity":          "of mounts",
	"golang.org/x/sync":                         "of mounts",
	"github.com/containerd/cgroups/v3":          "statistics as runc's shim gives them",
	"github.com/docker/go-units":                "of statistics",
	"github.com/containerd/typeurl/v2":          "of errdefs",
	"golang.org/x/net":                          "of libcontainer's BPF",

	"github.com/opencontainers/runc":               "libcontainer",
	"github.com/opencontainers/runtime-spec":       "",
	"github.com/opencontainers/cgroups":            "of libcontainer, and so the rest",
	"github.com/aperturerobotics/protobuf-go-lite": "",
	"github.com/checkpoint-restore/go-criu/v8":     "",
	"github.com/cilium/ebpf":                       "",
	"github.com/containerd/console":                "",
	"github.com/coreos/go-systemd/v22":             "",
	"github.com/cyphar/filepath-securejoin":        "",
	"github.com/godbus/dbus/v5":                    "",
	"github.com/moby/sys/capability":               "",
	"github.com/moby/sys/mountinfo":                "",
	"github.com/moby/sys/user":                     "",
	"github.com/moby/sys/userns":                   "",
	"github.com/mrunalp/fileutils":                 "",
	"github.com/opencontainers/selinux":            "",
	"github.com/seccomp/libseccomp-golang":         "ours, internal/supervisor/libseccomp",
	"berth.libseccomp":                             "what it stands for",
	"github.com/sirupsen/logrus":                   "",
	"github.com/vishvananda/netlink":               "",
	"github.com/vishvananda/netns":                 "",
}

// mayNotImport is what it never links, whatever the list above becomes.
var mayNotImport = []string{
	"github.com/containerd/containerd/v2/client",
	"github.com/containerd/containerd/v2/core/runtime",
	"google.golang.org/grpc/internal/transport",
	"k8s.io/",
	"net/http",
	"modernc.org/sqlite",
	"github.com/prometheus",
}

// maxSize is of the stripped program, in bytes.
const maxSize = 12 << 20

// As the Makefile builds it.
var buildFlags = []string{"-tags", "seccomp netgo osusergo no_grpc"}

func TestImports(t *testing.T) {
	args := append([]string{"list", "-deps", "-f", "{{if .Standard}}std{{else}}{{.Module.Path}}{{end}} {{.ImportPath}}"}, buildFlags...)
	cmd := exec.Command("go", append(args, ".")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	unused := map[string]bool{}
	for name := range mayImport {
		unused[name] = true
	}
	for line := range strings.Lines(string(out)) {
		module, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		for _, bad := range mayNotImport {
			if strings.HasPrefix(name, bad) {
				t.Errorf("links %s", name)
			}
		}
		if module == "std" {
			continue
		}
		if module == "berth" {
			module = name
		}
		if _, ok := mayImport[module]; !ok {
			t.Errorf("links %s of %s, which is not on the list", name, module)
		}
		delete(unused, module)
	}
	if diff := cmp.Diff(map[string]bool{}, unused); diff != "" {
		t.Errorf("on the list, but not linked (-want +got):\n%s", diff)
	}
}

func TestProgram(t *testing.T) {
	program := filepath.Join(t.TempDir(), "shim")
	args := append([]string{"build", "-trimpath", "-ldflags=-s -w -linkmode external -extldflags -static", "-o", program}, buildFlags...)
	cmd := exec.Command("go", append(args, ".")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
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
	out, err = exec.Command(program, "-namespace", "n", "-id", "i", "delete").Output()
	var deleted taskAPI.DeleteResponse
	if err = errors.Join(err, proto.Unmarshal(out, &deleted)); err != nil {
		t.Fatal(err)
	}
	if deleted.ExitStatus != 255 || time.Since(deleted.ExitedAt.AsTime()).Abs() > time.Hour {
		t.Errorf("answer to delete: %v", &deleted)
	}
	if out, err := exec.Command(program, "-namespace", "n", "-id", "i", "start").CombinedOutput(); err == nil {
		t.Errorf("start as a shim: %s", out)
	}
}
