package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// A process counts wherever it goes: in the daemon's cgroup, in another that it
// has to itself, and in one that is shared.
func TestCPUFollowsProcesses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes cgroups, so it wants root")
	}
	tree, _, err := cpuTree()
	if err != nil {
		t.Fatal(err)
	}
	top := fmt.Sprintf("berth-test-bench-%d", os.Getpid())
	s := &server{name: nameBerth, dir: t.TempDir(), state: t.TempDir(), cgroup: filepath.Join(top, "server")}
	alone, shared := filepath.Join(top, "alone"), filepath.Join(top, "shared")

	// It names the server's directory and uses a processor until it is ended.
	spin := func(name string) *exec.Cmd {
		cmd := exec.Command("sh", "-c", "while :; do :; done", name)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // that it was killed
		})
		return cmd
	}
	t.Cleanup(func() {
		for _, dir := range []string{filepath.Join(s.cgroup, daemonCgroup), s.cgroup, alone, shared, top} {
			if err := os.Remove(filepath.Join(tree, dir)); err != nil {
				t.Error(err)
			}
		}
	})
	ours, other := spin(s.dir+"/config.toml"), spin("somebody else")
	if err := joinCgroup(other.Process.Pid, shared); err != nil {
		t.Fatal(err)
	}
	for _, cgroup := range []string{filepath.Join(s.cgroup, daemonCgroup), alone, shared} {
		if err := joinCgroup(ours.Process.Pid, cgroup); err != nil {
			t.Fatal(err)
		}
		before, err := s.cpu(false)
		if err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(30 * time.Second)
		for now := before; now < before+20*time.Millisecond; time.Sleep(time.Millisecond) {
			if now, err = s.cpu(false); err != nil {
				t.Fatal(err)
			}
			if time.Now().After(deadline) {
				t.Fatalf("in %s it used no CPU time that counts", cgroup)
			}
		}
	}
	for cgroup, own := range map[string]bool{alone: true, shared: false, top: false, "": false} {
		all, err := s.processes()
		if err != nil {
			t.Fatal(err)
		}
		if got := ownCgroup(cgroup, all); got != own {
			t.Errorf("ownCgroup(%q) = %v", cgroup, got)
		}
	}
}
