package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	systemd "github.com/coreos/go-systemd/v22/dbus"
)

// swapUnits are slices as a kernel with swap accounting shows them, beside
// which no cgroup has the memory controller.
type swapUnits struct {
	root    string
	err     error
	stopped []string
}

func (u *swapUnits) StartSlice(_ context.Context, name string) error {
	if u.err != nil {
		return u.err
	}
	dir := filepath.Join(u.root, name)
	return errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "memory.swap.max"), []byte("max\n"), 0o644))
}

func (u *swapUnits) SetProperties(context.Context, string, []systemd.Property) error {
	return errors.ErrUnsupported
}

func (u *swapUnits) StartScope(context.Context, string, int) error { return errors.ErrUnsupported }

func (u *swapUnits) Stop(_ context.Context, name string) error {
	u.stopped = append(u.stopped, name)
	return os.RemoveAll(filepath.Join(u.root, name))
}

func (u *swapUnits) Close() error { return nil }

func TestSwapLimits(t *testing.T) {
	for name, tc := range map[string]struct {
		mounts string
		files  map[string]string
		want   bool
	}{
		"v2, seen in a slice": {v2Only, map[string]string{"system.slice/memory.swap.max": "max"}, true},
		"v2, in a container":  {v2Only, map[string]string{"memory.swap.max": "max"}, true},
		"v2, no memory":       {v2Only, map[string]string{"cgroup.controllers": "pids cpu\n"}, false},
		"hybrid":              {hybrid, map[string]string{"memory/memory.memsw.limit_in_bytes": "1"}, true},
		"hybrid, none":        {hybrid, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			root := machine(t, tc.mounts, false)
			for file, text := range tc.files {
				write(t, filepath.Join(root, "sys/fs/cgroup", file), text)
			}
			c, err := NewCgroupsAt(root, CgroupfsDriver)
			must(t, err)
			if got, err := c.SwapLimits(); err != nil || got != tc.want {
				t.Errorf("swap limits: %v, %v, want %v", got, err, tc.want)
			}
		})
	}
}

// Where no cgroup has the memory controller yet, one is made to look at.
func TestSwapLimitsAreProbed(t *testing.T) {
	root := machine(t, v2Only, true)
	c, err := NewCgroupsAt(root, SystemdDriver)
	must(t, err)
	units := &swapUnits{root: filepath.Join(root, "sys/fs/cgroup")}
	c.units = units
	if got, err := c.SwapLimits(); err != nil || !got {
		t.Errorf("swap limits: %v, %v", got, err)
	}
	if left, err := filepath.Glob(filepath.Join(units.root, "berth*")); err != nil || len(left) > 0 || len(units.stopped) != 1 {
		t.Errorf("left: %v, %v; stopped %v", left, err, units.stopped)
	}
	units.err = errors.New("no bus")
	if got, err := c.SwapLimits(); !errors.Is(err, units.err) || got {
		t.Errorf("swap limits: %v, %v", got, err)
	}
}
