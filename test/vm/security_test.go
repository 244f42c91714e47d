package vm

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

func apparmor(p *cri.SecurityProfile) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext = &cri.LinuxContainerSecurityContext{Apparmor: p}
	}
}

func TestAppArmor(t *testing.T) {
	needsVM(t)
	const own = "berth-vm-test"
	load := exec.Command("apparmor_parser", "-r", "-K")
	load.Stdin = strings.NewReader(fmt.Sprintf("profile %s flags=(attach_disconnected,mediate_deleted) {\n file,\n deny /tmp/** w,\n signal,\n}\n", own))
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("apparmor_parser: %v: %s", err, out)
	}
	p := client.Pod(t)
	for _, tc := range []struct {
		name    string
		profile *cri.SecurityProfile
		want    string
	}{
		{"none asked for", nil, "berth-default (enforce)"},
		{"runtime default", &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, "berth-default (enforce)"},
		{"unconfined", &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, "unconfined"},
		{"localhost", &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: own}, own + " (enforce)"},
	} {
		if got := strings.TrimSpace(p.Output(t, busybox, []string{"cat", "/proc/self/attr/current"}, apparmor(tc.profile))); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	// A profile is in force for what is executed too, and berth can stop what it
	// confines.
	ctr := p.Container(t, busybox, []string{"sleep", "1000"}, apparmor(&cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: own}))
	if r, err := ctr.ExecSync(t.Context(), "sh", "-c", "mkdir -p /tmp; echo x >/tmp/x"); err != nil || r.ExitCode == 0 {
		t.Errorf("a write that the profile denies: %v, %v", r, err)
	}
	def := p.Container(t, busybox, []string{"sleep", "1000"}, apparmor(nil))
	if got := strings.TrimSpace(def.Exec(t, "cat", "/proc/self/attr/current")); got != "berth-default (enforce)" {
		t.Errorf("executed: %q", got)
	}
	if err := def.Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
	// The kernel says so when the container is to start.
	missing, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"},
		apparmor(&cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "not-loaded"})))
	if err == nil {
		err = missing.Start(t.Context())
	}
	if err == nil || !strings.Contains(err.Error(), "apparmor") {
		t.Errorf("a profile that is not loaded: %v", err)
	}
}
