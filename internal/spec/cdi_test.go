package spec

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCDIDevices(t *testing.T) {
	c := &runtime.ContainerConfig{
		CDIDevices:  []*runtime.CDIDevice{{Name: "v.com/gpu=1"}, {Name: "v.com/gpu=0"}},
		Annotations: map[string]string{"cdi.k8s.io/b": "v.com/nic=a,v.com/gpu=1", "cdi.k8s.io/a": "v.com/nic=b", "other": "x"},
	}
	got, err := CDIDevices(c)
	must(t, err)
	if diff := cmp.Diff([]string{"v.com/gpu=1", "v.com/gpu=0", "v.com/nic=b", "v.com/nic=a"}, got); diff != "" {
		t.Error(diff)
	}
	for range maxCDIDevices {
		c.CDIDevices = append(c.CDIDevices, &runtime.CDIDevice{Name: "v.com/gpu=x" + strings.Repeat("y", len(c.CDIDevices))})
	}
	if _, err := CDIDevices(c); !errdefs.IsInvalidArgument(err) {
		t.Errorf("too many: %v", err)
	}
}

const cdiSpec = `cdiVersion: "0.7.0"
kind: v.com/gpu
containerEdits:
  env: ["OF_ALL=1"]
devices:
- name: "0"
  containerEdits:
    env: ["GPU=0"]
    deviceNodes: [{path: /dev/gpu0, hostPath: /dev/null, permissions: rw}]
    mounts: [{hostPath: /usr/lib, containerPath: /usr/lib/gpu, options: [ro, nosuid, bind]}]
    hooks: [{hookName: createContainer, path: /bin/true, args: [true, x]}]
    additionalGids: [44]
- name: gone
  containerEdits:
    deviceNodes: [{path: /dev/no-such-device}]
`

// cdiDirs are two directories of CDI specs.
func cdiDirs(t *testing.T) []string {
	t.Helper()
	dir := t.TempDir()
	dirs := []string{filepath.Join(dir, "etc"), filepath.Join(dir, "run")}
	for _, d := range dirs {
		must(t, os.Mkdir(d, 0o755))
	}
	must(t, os.WriteFile(filepath.Join(dirs[0], "gpu.yaml"), []byte(cdiSpec), 0o600))
	return dirs
}

func TestInjectCDI(t *testing.T) {
	in := input()
	in.Container.CDIDevices = []*runtime.CDIDevice{{Name: "v.com/gpu=0"}}
	s, _, err := Container(in)
	must(t, err)
	must(t, InjectCDI(s, in.Container, cdiDirs(t)))
	checkGolden(t, "testdata/cdi.json", render(t, s, nil))

	plain, _, err := Container(input())
	must(t, err)
	must(t, InjectCDI(plain, input().Container, []string{"/nonexistent"}))
	unchanged, _, err := Container(input())
	must(t, err)
	if diff := cmp.Diff(unchanged, plain); diff != "" {
		t.Errorf("a container without devices is changed:\n%s", diff)
	}
}

func TestInjectCDIErrors(t *testing.T) {
	dirs := cdiDirs(t)
	must(t, os.WriteFile(filepath.Join(dirs[1], "bad.json"), []byte("{"), 0o600))
	for name, words := range map[string][]string{
		"v.com/gpu=7":    {"v.com/gpu=7", dirs[0], "bad.json"},
		"v.com/gpu=gone": {"/dev/no-such-device"},
	} {
		in := input()
		in.Container.CDIDevices = []*runtime.CDIDevice{{Name: name}}
		s, _, err := Container(in)
		must(t, err)
		err = InjectCDI(s, in.Container, dirs)
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		for _, word := range words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q is not named in %v", name, word, err)
			}
		}
	}
}
