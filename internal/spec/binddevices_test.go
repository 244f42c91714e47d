package spec

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestBindDevices(t *testing.T) {
	null, zeroAtNull := node("/dev/null", 1, 3), node("/dev/null", 1, 5)
	make := func(change func(*Input), devices ...specs.LinuxDevice) *specs.Spec {
		in := input()
		change(&in)
		for _, d := range devices {
			withDevice(&in, d.Path, "rw", d)
		}
		s, _, err := Container(in)
		must(t, err)
		return s
	}
	plain := make(func(*Input) {}, zeroAtNull)
	must(t, BindDevices(plain))
	if diff := cmp.Diff([]specs.LinuxDevice{zeroAtNull}, plain.Linux.Devices); diff != "" {
		t.Errorf("without a user namespace:\n%s", diff)
	}
	s := make(inUserNamespace, null, node("/dev/mine", 1, 5))
	must(t, BindDevices(s))
	if diff := cmp.Diff([]specs.LinuxDevice{null}, s.Linux.Devices); diff != "" {
		t.Error(diff)
	}
	want := specs.Mount{Destination: "/dev/mine", Type: "bind", Source: "/dev/zero", Options: []string{"bind", "rprivate", "nosuid", "noexec"}}
	if diff := cmp.Diff(want, s.Mounts[len(s.Mounts)-1]); diff != "" {
		t.Error(diff)
	}
	if n := len(s.Linux.Resources.Devices); n != 3 { // none but these two
		t.Errorf("%d rules: %v", n, s.Linux.Resources.Devices)
	}
	if err := BindDevices(make(inUserNamespace, node("/dev/x", 240, 77))); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no node: %v", err)
	}
}
