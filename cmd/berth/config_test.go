package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func runConfig(args ...string) (string, error) {
	var out bytes.Buffer
	cmd := newConfigCommand()
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(args)
	err := cmd.Execute()
	return out.String(), err
}

// What `config default` prints, `config check` accepts.
func TestConfigDefaultChecks(t *testing.T) {
	text, err := runConfig("default")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := runConfig("check", file)
	if err != nil {
		t.Fatal(err)
	}
	if want := file + " is fine\n"; out != want {
		t.Errorf("output %q, want %q", out, want)
	}
}

func TestConfigCheckRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte("[log]\nlevle = \"info\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := runConfig("check", file)
	if err == nil || !strings.Contains(err.Error(), file+`:2: unknown key "log.levle"; the nearest known one is "log.level"`) {
		t.Errorf("err = %v", err)
	}
	if _, err := runConfig("check", filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is missing is fine")
	}
}
