// Package packaging holds what an installation needs beside programs; its test
// installs the built tree and looks at what it got.
package packaging

import (
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var programs = []string{
	"berth", "containerd-shim-berth-v1", "libexec/runc", "libexec/containerd-shim-runc-v2",
	"libexec/cni/bridge", "libexec/cni/host-local", "libexec/cni/loopback", "libexec/cni/portmap",
}

// built skips nothing: a tree that is not built is an error that says so.
func built(t *testing.T, program string) string {
	t.Helper()
	path := filepath.Join("..", "bin", program)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run \"make build\" first", err)
	}
	return path
}

// A program that needs no library of the machine runs on every one.
func TestProgramsAreStatic(t *testing.T) {
	for _, program := range programs {
		f, err := elf.Open(built(t, program))
		if err != nil {
			t.Errorf("%s: %v", program, err)
			continue
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP {
				t.Errorf("%s is linked dynamically", program)
			}
		}
		if libs, err := f.ImportedLibraries(); err == nil && len(libs) > 0 {
			t.Errorf("%s needs %v", program, libs)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestRuncIsThePinnedOne(t *testing.T) {
	pins, err := os.ReadFile("../tools/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	pin := regexp.MustCompile(`github.com/opencontainers/runc v(\S+)`).FindSubmatch(pins)
	if pin == nil {
		t.Fatal("tools/go.mod does not pin runc")
	}
	out, err := exec.Command(built(t, "libexec/runc"), "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := "runc version " + string(pin[1]); !strings.HasPrefix(string(out), want) {
		t.Errorf("runc --version = %q, want %q", out, want)
	}
	out, err = exec.Command(built(t, "libexec/runc"), "features").Output()
	if err != nil {
		t.Fatal(err)
	}
	var features struct {
		Linux struct{ Seccomp struct{ Enabled bool } }
	}
	if err := json.Unmarshal(out, &features); err != nil {
		t.Fatal(err)
	}
	if !features.Linux.Seccomp.Enabled {
		t.Error("runc is built without seccomp")
	}
}

// stage makes the tree that tarball and package are made of.
func stage(t *testing.T) string {
	t.Helper()
	for _, program := range programs {
		built(t, program)
	}
	dir := t.TempDir()
	if out, err := exec.Command("../scripts/stage.sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("stage.sh: %v\n%s", err, out)
	}
	return dir
}

func script(t *testing.T, staged, dest, verb string) {
	t.Helper()
	cmd := exec.Command(staged+"/install.sh", verb)
	cmd.Env = append(os.Environ(), "DESTDIR="+dest, "PREFIX=/usr", "SYSCONFDIR=/etc", "UNITDIR=/lib/systemd/system")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("install.sh %s: %v\n%s", verb, err, out)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// files lists those below a directory, with their modes.
func files(t *testing.T, dir string) map[string]os.FileMode {
	t.Helper()
	all := map[string]os.FileMode{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		all[strings.TrimPrefix(path, dir)] = info.Mode().Perm()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestInstall(t *testing.T) {
	staged, dest := stage(t), t.TempDir()
	script(t, staged, dest, "install")
	have := files(t, dest)
	for _, program := range programs {
		path := "/usr/libexec/berth/" + strings.TrimPrefix(program, "libexec/")
		if program == "berth" {
			path = "/usr/bin/berth"
		}
		if have[path] != 0o755 {
			t.Errorf("%s has mode %s", path, have[path])
		}
	}
	for _, path := range []string{
		"/usr/share/man/man1/berth.1.gz", "/usr/share/man/man1/berth-run.1.gz", "/usr/share/man/man1/berth-config-check.1.gz", "/usr/share/man/man5/berth-config.toml.5.gz",
		"/usr/share/bash-completion/completions/berth", "/usr/share/zsh/site-functions/_berth", "/usr/share/fish/vendor_completions.d/berth.fish",
		"/usr/share/doc/berth/LICENSE", "/usr/share/doc/berth/THIRD-PARTY-NOTICES", "/usr/share/doc/berth/examples/web.yaml", "/etc/berth/config.toml",
	} {
		if have[path] != 0o644 {
			t.Errorf("%s has mode %s", path, have[path])
		}
	}
	checkUnit(t, read(t, dest+"/lib/systemd/system/berth.service"))
	conf := dest + "/etc/berth/config.toml"
	if out, err := exec.Command(dest+"/usr/bin/berth", "config", "check", conf).CombinedOutput(); err != nil {
		t.Errorf("the installed configuration: %v\n%s", err, out)
	}
	if out, err := exec.Command("bash", "-n", dest+"/usr/share/bash-completion/completions/berth").CombinedOutput(); err != nil {
		t.Errorf("the completion for bash: %v\n%s", err, out)
	}

	// What the user changed is the user's, through upgrades and removal.
	const mine = "log.level = \"debug\"\n"
	if err := os.WriteFile(conf, []byte(mine), 0o600); err != nil {
		t.Fatal(err)
	}
	script(t, staged, dest, "install")
	if got := read(t, conf); got != mine {
		t.Errorf("an upgrade wrote over the configuration: %q", got)
	}
	if again := files(t, dest); len(again) != len(have) {
		t.Errorf("an upgrade made %d files of %d", len(again), len(have))
	}
	script(t, staged, dest, "uninstall")
	if got := read(t, conf); got != mine {
		t.Errorf("uninstall changed the configuration: %q", got)
	}
	if diff := cmp.Diff(map[string]os.FileMode{"/etc/berth/config.toml": 0o644}, files(t, dest)); diff != "" {
		t.Errorf("after uninstall: -want +got:\n%s", diff)
	}
}

func checkUnit(t *testing.T, unit string) {
	t.Helper()
	for _, want := range []string{"\nExecStart=/usr/bin/berth serve\n", "\nType=notify\n", "\nKillMode=process\n", "\nDelegate=yes\n",
		"\nStartLimitIntervalSec=0\n", "\nWatchdogSec=2min\n", "\nRequiresMountsFor=/var/lib/berth\n"} {
		if !strings.Contains(unit, want) {
			t.Errorf("the unit lacks %q:\n%s", want, unit)
		}
	}
	// What it sets here, every container inherits.
	if strings.Contains(unit, "\nLimitNOFILE=") {
		t.Errorf("the unit sets a limit of open files:\n%s", unit)
	}
}

// A tarball that was damaged on its way installs nothing.
func TestDamagedTarballIsRefused(t *testing.T) {
	staged, dest := stage(t), t.TempDir()
	if err := os.WriteFile(staged+"/libexec/berth/runc", []byte("half"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(staged+"/install.sh", "install")
	cmd.Env = append(os.Environ(), "DESTDIR="+dest)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "is damaged") {
		t.Errorf("%v\n%s", err, out)
	}
	if have := files(t, dest); len(have) > 0 {
		t.Errorf("installed: %v", have)
	}
}

// The notices name every module in the programs, each with a text.
func TestNoticesAreWhole(t *testing.T) {
	notices := read(t, stage(t)+"/THIRD-PARTY-NOTICES")
	_, texts, _ := strings.Cut(notices, "====")
	for _, program := range programs {
		info, err := buildinfo.ReadFile(built(t, program))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			if m.Version == "" || m.Version == "(devel)" { // a directory of ours
				continue
			}
			if name := m.Path + " " + m.Version + "\n"; !strings.Contains(notices, "  "+name) || !strings.Contains(texts, "\n"+name) {
				t.Errorf("the notices lack %s, which is in %s", strings.TrimSpace(name), program)
			}
		}
	}
	for _, want := range []string{"Go's standard library", "libseccomp (LGPL 2.1)", "the GNU C library"} {
		if !strings.Contains(texts, "\n"+want) {
			t.Errorf("the notices lack %s", want)
		}
	}
}

func TestMaintainerScripts(t *testing.T) {
	scripts, err := filepath.Glob("deb/p*")
	if err != nil || len(scripts) != 3 {
		t.Fatalf("%v, %v", scripts, err)
	}
	for _, file := range scripts {
		if out, err := exec.Command("sh", "-n", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
		if text := read(t, file); !strings.HasPrefix(text, "#!/bin/sh\n") || !strings.Contains(text, "\nset -e\n") {
			t.Errorf("%s does not end at an error", file)
		}
	}
}
