package sandbox

import (
	"context"
	"crypto/rand"
	"log/slog"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/host"
	"berth/internal/paths"
	"berth/internal/record"
	"berth/internal/steps"
	"berth/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m, nil) }

// newService is a service on the machine's cgroups with a store of its own,
// and without what pods need beside those. A test makes records by itself.
func newService(t *testing.T, change func(*Options)) *Service {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	dir := t.TempDir()
	store, err := record.Open(t.Context(), dir+"/records.db", log)
	if err != nil {
		t.Fatal(err)
	}
	cgroups, err := host.NewCgroups(host.CgroupfsDriver)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Paths: paths.Paths{Root: dir + "/root", State: dir + "/state"}, Store: store, Cgroups: cgroups, Log: log,
		Steps: steps.New(steps.Options{Journal: store, Log: log}), CgroupParent: "/berth-sandbox-" + rand.Text()[:12],
	}
	o.Pauses = none{}
	if change != nil {
		change(&o)
	}
	s := New(o)
	t.Cleanup(func() {
		for _, close := range []func() error{s.Close, cgroups.Close, store.Close} {
			if err := close(); err != nil {
				t.Error(err)
			}
		}
		if cgroups.Exists(o.CgroupParent) {
			t.Errorf("cgroup %s is left", o.CgroupParent)
			if err := cgroups.Remove(o.CgroupParent); err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

// none makes no sandbox container.
type none struct{ Pauses }

func (none) WantsPause(string) bool                          { return false }
func (none) DropPause(context.Context, string, string) error { return nil }

// put records a pod, as Run does first. Its cgroup is parent, or where that is
// empty the pod's own.
func put(t *testing.T, s *Service, id, parent string) {
	t.Helper()
	cfg := &runtime.PodSandboxConfig{Linux: &runtime.LinuxPodSandboxConfig{CgroupParent: parent}}
	parent = s.cgroupParent(cfg, id)
	err := s.Store.Sandboxes.Put(&record.Sandbox{
		ID: id, Config: cfg, State: record.SandboxReady, CgroupParent: parent, OwnCgroup: !s.Cgroups.Exists(parent),
	})
	if err != nil {
		t.Error(err)
	}
}
