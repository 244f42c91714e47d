package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// cdiSpec describes a device of the vendor; no device of the machine is needed.
func cdiSpec(t *testing.T, c *testkit.Client, vendor, hostDir string) {
	t.Helper()
	dir := c.Daemon().CDIDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, vendor+".yaml")
	text := `cdiVersion: "0.7.0"
kind: ` + vendor + `/dev
containerEdits:
  env: ["VENDOR=1"]
devices:
- name: "0"
  containerEdits:
    env: ["DEVICE=0"]
    deviceNodes: [{path: /dev/accel0, hostPath: /dev/zero, permissions: rw}]
    mounts: [{hostPath: ` + hostDir + `, containerPath: /opt/driver, options: [ro, rbind, rprivate]}]
    hooks: [{hookName: createRuntime, path: /bin/touch, args: [touch, ` + hostDir + `/hooked]}]
    additionalGids: [4242]
- name: gone
  containerEdits:
    deviceNodes: [{path: /dev/no-such-device}]
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
	})
}

func TestCDI(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		vendor, dir := testkit.Name("v")+".com", t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "libdriver"), []byte("driver\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		cdiSpec(t, c, vendor, dir)
		for name, change := range map[string]func(*cri.PodSandboxConfig){"pod": func(*cri.PodSandboxConfig) {}, "with a user namespace": userNamespace} {
			p := c.Pod(t, change)
			for way, ask := range map[string]func(*cri.ContainerConfig){
				"field":      func(c *cri.ContainerConfig) { c.CDIDevices = []*cri.CDIDevice{{Name: vendor + "/dev=0"}} },
				"annotation": func(c *cri.ContainerConfig) { c.Annotations = map[string]string{"cdi.k8s.io/x": vendor + "/dev=0"} },
			} {
				ctr := sleeper(t, p, ask)
				got := ctr.Exec(t, "sh", "-c", "echo $VENDOR $DEVICE; head -c2 /dev/accel0 | wc -c; cat /opt/driver/libdriver; touch /opt/driver/x 2>&1; id -G | grep -c 4242")
				if want := "1 0\n2\ndriver\ntouch: /opt/driver/x: Read-only file system\n1\n"; got != want {
					t.Errorf("%s, %s: got %q, want %q", name, way, got, want)
				}
				if err := os.Remove(filepath.Join(dir, "hooked")); err != nil {
					t.Errorf("%s, %s: the hook has not run: %v", name, way, err)
				}
			}
		}
	})
}

func TestCDIRefused(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		vendor := testkit.Name("v") + ".com"
		cdiSpec(t, c, vendor, t.TempDir())
		p := c.Pod(t)
		for name, code := range map[string]codes.Code{
			vendor + "/dev=7":    codes.FailedPrecondition,
			vendor + "/dev=gone": codes.FailedPrecondition,
			"gpu0":               codes.InvalidArgument,
		} {
			_, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"}, func(c *cri.ContainerConfig) { c.CDIDevices = []*cri.CDIDevice{{Name: name}} }))
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v", name, err)
			}
			testkit.WantCode(t, err, code)
		}
	})
}
