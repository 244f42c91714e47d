package host

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A process is moved out of its cgroups, which stay while it runs and are
// removed after.
func TestApart(t *testing.T) {
	c, err := NewCgroups(CgroupfsDriver)
	must(t, err)
	was := apartCgroup
	apartCgroup = fmt.Sprintf("/berth-apart-test-%d", os.Getpid())
	t.Cleanup(func() { apartCgroup = was })
	cmd := exec.Command("sleep", "1000")
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 2 {
		for _, mount := range c.layout.all {
			must(t, c.moveApart(mount, cmd.Process.Pid))
		}
		must(t, c.ClearApart())
	}
	at, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
	must(t, err)
	if !strings.Contains(string(at), apartCgroup) {
		t.Errorf("the process is in\n%s", at)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // of being killed
	must(t, c.ClearApart())
	if left, err := filepath.Glob("/sys/fs/cgroup/*" + apartCgroup); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
