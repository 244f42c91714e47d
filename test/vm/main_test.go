// Package vm tests what only a machine run by systemd with cgroup v2 and
// AppArmor can show: berth installed as users install it, started by its unit.
//
// It runs in the virtual machine that image.sh makes and exec.sh boots (`make
// test-vm`); elsewhere every test is skipped. The machine is the tests' own and
// goes with them, so they clean up only what would disturb another test. They
// share one installed daemon and run one after the other.
package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"berth/internal/paths"
	"berth/internal/testkit"
	"berth/internal/testkit/registrytest"
)

const unit = "berth.service"

var (
	client  *testkit.Client
	busybox string
)

func TestMain(m *testing.M) {
	if os.Getenv("BERTH_IN_VM") == "" {
		os.Exit(m.Run())
	}
	testkit.Main(m, setup)
}

// needsVM skips a test that is not in the virtual machine.
func needsVM(t *testing.T) {
	t.Helper()
	if client == nil {
		t.Skip("needs the virtual machine of make test-vm")
	}
}

// setup installs berth, starts its unit and has it pull an image.
func setup() (func() error, error) {
	install := exec.Command("/berth/scripts/install.sh", "install")
	install.Env = append(os.Environ(), "PREFIX=/usr")
	if out, err := install.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("install.sh: %w\n%s", err, out)
	}
	if err := systemctl("start", unit); err != nil {
		return nil, err
	}
	registry, err := registrytest.New()
	if err != nil {
		return nil, err
	}
	img, err := testkit.Image(testkit.ImageOptions{})
	if err != nil {
		return registry.Close, err
	}
	if _, err := registry.Push("busybox:1", img); err != nil {
		return registry.Close, err
	}
	busybox = registry.Ref("busybox:1")
	d := &testkit.Daemon{
		Paths:   paths.Paths{Root: "/var/lib/berth", State: "/run/berth"},
		Address: "/run/berth/berth.sock", Logs: "/var/log/pods", CgroupParent: "kubepods.slice",
	}
	c, err := d.Dial()
	if err != nil {
		return registry.Close, err
	}
	teardown := func() error { return errors.Join(c.Close(), registry.Close(), systemctl("stop", unit)) }
	if _, err := c.Pull(context.Background(), busybox); err != nil {
		return teardown, fmt.Errorf("%w\n%s", err, journal())
	}
	client = c
	return teardown, nil
}

// systemctl fails with what the unit says of itself.
func systemctl(args ...string) error {
	if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl %s: %w\n%s\n%s", strings.Join(args, " "), err, out, journal())
	}
	return nil
}

func mustSystemctl(t *testing.T, args ...string) {
	t.Helper()
	if err := systemctl(args...); err != nil {
		t.Fatal(err)
	}
}

// journal is the end of what the daemon and systemd said.
func journal() string {
	out, err := exec.Command("journalctl", "--no-pager", "-n", "60", "-u", unit).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("journalctl: %v: %s", err, out)
	}
	return string(out)
}

// property is one of the unit's.
func property(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("systemctl", "show", "-P", name, unit).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func answers(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Scaled(10*time.Second))
	defer cancel()
	if _, err := client.Version(ctx); err != nil {
		t.Fatalf("the daemon does not answer: %v\n%s", err, journal())
	}
}
