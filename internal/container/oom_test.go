package container

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/host"
	"berth/internal/record"
)

// systemd removes a container's cgroup before it is read; on v2 the pod's tells
// what was killed in it. Of several containers only the one that was killed has
// lacked memory.
func TestOOMKillsOfGoneCgroups(t *testing.T) {
	root := t.TempDir()
	write := func(path, content string) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	events := func(cgroup string, kills int) {
		t.Helper()
		write("sys/fs/cgroup"+cgroup+"/memory.events", fmt.Sprintf("low 0\nhigh 0\nmax 3\noom 1\noom_kill %d\noom_group_kill 0\n", kills))
	}
	write("proc/self/mountinfo", "30 22 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
	write("sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n")
	cgroups, err := host.NewCgroupsAt(root, host.CgroupfsDriver)
	if err != nil {
		t.Fatal(err)
	}
	store, err := record.Open(t.Context(), filepath.Join(root, "records.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &Service{Options: Options{Store: store, Cgroups: cgroups}, live: map[string]*live{}, ooms: oomTally{known: map[string]uint64{}}}
	add := func(id string, state record.ContainerState, reason string) *live {
		t.Helper()
		c := &record.Container{ID: id, Cgroup: "/pod/" + id, State: state, Reason: reason, SandboxID: "pod", Config: &runtime.ContainerConfig{}}
		if err := store.Containers.Put(c); err != nil {
			t.Fatal(err)
		}
		l := newLive(id)
		s.live[id] = l
		return l
	}
	want := func(id string, want uint64) {
		t.Helper()
		if got, err := s.oomKills(id); err != nil || got != want {
			t.Errorf("%s: %d, want %d: %v", id, got, want, err)
		}
	}
	close(add("earlier", record.ContainerExited, reasonOOMKilled).ended) // before the daemon started
	first := add("first", record.ContainerRunning, "")
	there := add("there", record.ContainerRunning, "")
	last := add("last", record.ContainerRunning, "")

	events("/pod", 3) // one of earlier's, one of there's, one of first's
	events("/pod/there", 1)
	want("first", 1)
	close(first.ended)
	want("last", 0) // killed by hand
	close(last.ended)
	want("there", 1)
	close(there.ended)
	again := add("again", record.ContainerRunning, "")
	want("again", 0)
	close(again.ended)
}
