package spec

import (
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pause is the input of a sandbox container.
func pause(change func(*Input)) Input {
	in := input()
	in.ID, in.Container, in.Image, in.ImageName = in.SandboxID, nil, nil, ""
	in.CgroupsPath = "/kubepods/podb2d2/" + in.SandboxID
	change(&in)
	return in
}

func TestPause(t *testing.T) {
	for name, change := range map[string]func(*Input){
		"pause": func(*Input) {},
		"pause-full": func(in *Input) {
			in.Kernel.Capabilities, in.Kernel.OOMScoreAdj = []string{}, -5 // cannot go lower
			in.Sandbox.LogDirectory = "/var/log/pods/default_web_b2d2"
			in.Sandbox.Annotations = map[string]string{"dev.gvisor.x": "y", "other": "no", annotationType: "container"}
			in.PodAnnotations = []string{"dev.gvisor.*", annotationType}
			in.Sandbox.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
			in.Sandbox.Linux.Resources = &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 204, MemoryLimitInBytes: 64 << 20}
			in.Sandbox.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
		},
		"pause-host": func(in *Input) {
			in.Namespaces = Namespaces{}
			in.Sandbox.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{
				Network: runtime.NamespaceMode_NODE, Pid: runtime.NamespaceMode_NODE, Ipc: runtime.NamespaceMode_NODE}
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := pause(change)
			s, err := Pause(in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(pause(change), in, protocmp.Transform()); diff != "" {
				t.Errorf("the input was changed:\n%s", diff)
			}
			checkGolden(t, filepath.Join("testdata", name+".json"), render(t, s, nil))
		})
	}
	for _, in := range []Input{{ID: "a", SandboxID: "a"}, pause(func(in *Input) { in.ID = "another" })} {
		if _, err := Pause(in); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s in %s: %v", in.ID, in.SandboxID, err)
		}
	}
}
