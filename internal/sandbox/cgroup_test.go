package sandbox

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
)

// step runs the step "cgroup" of a pod, or its undo.
func step(t *testing.T, s *Service, id string, undo bool) {
	t.Helper()
	do := s.undoOf(id)["cgroup"]
	if !undo {
		box, err := s.Store.Sandboxes.Get(id)
		if err != nil {
			t.Error(err)
			return
		}
		for _, step := range s.runSteps(box) {
			if step.Name == "cgroup" {
				do = step.Do
			}
		}
	}
	if err := do(context.Background()); err != nil {
		t.Errorf("pod %s: undo %v: %v", id, undo, err)
	}
}

func drop(t *testing.T, s *Service, id string) {
	t.Helper()
	step(t, s, id, true)
	if err := s.Store.Sandboxes.Delete(id); err != nil {
		t.Error(err)
	}
}

func wantCgroup(t *testing.T, s *Service, path string, want bool) {
	t.Helper()
	if got := s.Cgroups.Exists(path); got != want {
		t.Errorf("cgroup %s is there: %v, want %v", path, got, want)
	}
}

// A record that cannot be read is set aside; the pod's directories are found.
func TestCgroupOfAPodWithoutRecord(t *testing.T) {
	s := newService(t, nil)
	put(t, s, "lost", "")
	step(t, s, "lost", false)
	wantCgroup(t, s, s.CgroupParent+"/lost", true)
	if err := s.Store.Sandboxes.Delete("lost"); err != nil {
		t.Fatal(err)
	}
	step(t, s, "lost", true)
	wantCgroup(t, s, s.CgroupParent, false)
}

func TestPodsShareACgroup(t *testing.T) {
	for _, order := range [][]string{{"first", "second"}, {"second", "first"}} {
		t.Run(order[0]+" goes first", func(t *testing.T) {
			s := newService(t, nil)
			shared := s.CgroupParent + "-shared"
			for _, id := range []string{"first", "second"} {
				put(t, s, id, shared)
				step(t, s, id, false)
			}
			end := process(t, s.Cgroups.Dir("pids", shared)+"/container")
			drop(t, s, order[0])
			wantCgroup(t, s, shared, true)
			end()
			drop(t, s, order[1])
			wantCgroup(t, s, shared, false)
		})
	}
}

func TestCgroupThatWasThereStays(t *testing.T) {
	s := newService(t, nil)
	theirs := s.CgroupParent + "-theirs"
	if err := s.Cgroups.Ensure(theirs); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"first", "second"} {
		put(t, s, id, theirs)
		step(t, s, id, false)
	}
	drop(t, s, "first")
	drop(t, s, "second")
	wantCgroup(t, s, theirs, true)
	if err := s.Cgroups.Remove(theirs); err != nil {
		t.Error(err)
	}
}

// process keeps a process in a cgroup until it is told to end it.
func process(t *testing.T, dir string) (end func()) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // "signal: killed"
	})
	t.Cleanup(end)
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	return end
}

// The last pod goes while another comes.
func TestNoPodLosesItsCgroup(t *testing.T) {
	s := newService(t, nil)
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for n := range 100 {
				id := fmt.Sprintf("pod-%d-%d", worker, n)
				put(t, s, id, "")
				step(t, s, id, false)
				wantCgroup(t, s, s.CgroupParent+"/"+id, true)
				drop(t, s, id)
			}
		})
	}
	wg.Wait()
	wantCgroup(t, s, s.CgroupParent, false)
}
