// Package packaging holds what an installation needs beside programs; its test
// installs the built tree and looks at what it got.
package packaging

import (
	"debug/elf"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
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

func script(t *testing.T, dest, verb string) {
	t.Helper()
	cmd := exec.Command("../scripts/install.sh", verb)
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

func TestInstall(t *testing.T) {
	for _, program := range programs {
		built(t, program)
	}
	dest := t.TempDir()
	script(t, dest, "install")
	for _, program := range programs {
		path := "/usr/libexec/berth/" + strings.TrimPrefix(program, "libexec/")
		if program == "berth" {
			path = "/usr/bin/berth"
		}
		fi, err := os.Stat(dest + path)
		if err != nil {
			t.Error(err)
		} else if fi.Mode().Perm() != 0o755 {
			t.Errorf("%s has mode %s", path, fi.Mode())
		}
	}
	unit := read(t, dest+"/lib/systemd/system/berth.service")
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
	conf := dest + "/etc/berth/config.toml"
	if out, err := exec.Command(dest+"/usr/bin/berth", "config", "check", conf).CombinedOutput(); err != nil {
		t.Errorf("the installed configuration: %v\n%s", err, out)
	}

	// What the user changed is the user's, through upgrades and removal.
	const mine = "log.level = \"debug\"\n"
	if err := os.WriteFile(conf, []byte(mine), 0o600); err != nil {
		t.Fatal(err)
	}
	script(t, dest, "install")
	if got := read(t, conf); got != mine {
		t.Errorf("an upgrade wrote over the configuration: %q", got)
	}
	script(t, dest, "uninstall")
	if got := read(t, conf); got != mine {
		t.Errorf("uninstall changed the configuration: %q", got)
	}
	for _, gone := range []string{"/usr/bin/berth", "/usr/libexec/berth", "/lib/systemd/system/berth.service"} {
		if _, err := os.Lstat(dest + gone); !os.IsNotExist(err) {
			t.Errorf("%s is still there after uninstall", gone)
		}
	}
}
