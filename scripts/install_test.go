// Package scripts_test tests the scripts that users run.
package scripts_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// uninstall runs it on an installation in dir.
func uninstall(dir string) (string, error) {
	cmd := exec.Command("./install.sh", "uninstall")
	cmd.Env = append(os.Environ(), "DESTDIR=", "PREFIX="+dir, "SYSCONFDIR="+dir+"/etc", "UNITDIR="+dir+"/units", "PATH="+dir+"/path:"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Programs under running containers stay.
func TestUninstallRefusesInUse(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "libexec/berth/runc")
	if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, text, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, link} {
		out, err := uninstall(d)
		if err == nil || !strings.Contains(out, "pid "+strconv.Itoa(cmd.Process.Pid)+" "+program) {
			t.Errorf("%v: %s", err, out)
		}
	}
	if _, err := os.Stat(program); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was to be killed")
	}
	// The process that a daemon leaves behind holds nothing back, and is ended.
	if text, err = os.ReadFile("/bin/sh"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, text, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hold"), []byte("read line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	hold := exec.Command(program, "hold")
	hold.Dir = dir
	if _, err := hold.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	if out, err := uninstall(dir); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := os.Stat(program); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := hold.Wait(); err == nil {
		t.Error("the hold process was not ended")
	}
}
