package container

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/engine"
	"berth/internal/host"
	"berth/internal/logs"
	"berth/internal/paths"
	"berth/internal/record"
	"berth/internal/steps"
	"berth/internal/supervisor/wire"
)

// containerd has no way to end its event exchange.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/docker/go-events.(*Broadcaster).run"))
}

// heard notes what was published.
type heard struct {
	mu     sync.Mutex // guards events
	events []string
}

func (h *heard) Publish(kind runtime.ContainerEventType, id string, _ *record.Sandbox) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, kind.String()+" "+id)
}

func (h *heard) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.events)
}

// nothingHeld holds no FIFO.
type nothingHeld struct{}

func (nothingHeld) Keep(context.Context, string, ...string) error { return nil }
func (nothingHeld) Release(context.Context, string) error         { return nil }

// unknowing are supervisors without containers; reason is what they say of one
// that has ended.
type unknowing struct{ reason string }

func (unknowing) NodeName() string                                   { return "n" }
func (unknowing) PodName(sandboxID string) string                    { return "p" + sandboxID }
func (unknowing) Endpoint(name string) string                        { return "ttrpc+unix:///nowhere/" + name }
func (unknowing) Ensure(context.Context, string, string) error       { return nil }
func (unknowing) Release(string, string) error                       { return nil }
func (unknowing) Keep(context.Context, string, string, string) error { return nil }
func (u unknowing) Task(context.Context, string, string) (wire.Task, error) {
	return wire.Task{Reason: u.reason}, nil
}
func (unknowing) Delete(context.Context, string, string) error { return nil }
func (unknowing) Stdio(string, logs.Options) Stdio             { return nil }

// newService is a service on an embedded containerd, a store and the machine's
// cgroups, all of its own, with sandbox "box" ready. A test makes records by
// itself; no container runs.
func newService(t *testing.T) (*Service, *heard) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containerd needs root")
	}
	dir, err := os.MkdirTemp("", "bc") // short: sockets are in it
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	p := paths.Paths{Root: dir + "/root", State: dir + "/run"}
	for _, d := range []string{p.Root, p.State} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	store, err := record.Open(t.Context(), p.Records(), log)
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.StartEmbedded(t.Context(), engine.Options{Root: p.Containerd(), State: p.ContainerdState(), Socket: p.ContainerdSocket(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	cgroups, err := host.NewCgroups(host.CgroupfsDriver)
	if err != nil {
		t.Fatal(err)
	}
	events := &heard{}
	s := New(Options{
		Paths: p, Store: store, Steps: steps.New(steps.Options{Journal: store, Log: log}), Engine: e,
		Hold: nothingHeld{}, Supervisors: unknowing{}, Cgroups: cgroups, Events: events, Log: log, Snapshotter: "overlayfs",
		Handlers: map[string]Handler{"berth": {Type: "io.containerd.berth.v1", Supervisor: "node"}, "runc": {Type: "io.containerd.runc.v2"}},
	})
	t.Cleanup(func() {
		for _, close := range []func() error{s.Close, cgroups.Close, e.Close, store.Close, func() error { return os.RemoveAll(dir) }} {
			if err := close(); err != nil {
				t.Error(err)
			}
		}
	})
	if err := store.Sandboxes.Put(&record.Sandbox{ID: "box", Config: &runtime.PodSandboxConfig{}, State: record.SandboxReady}); err != nil {
		t.Fatal(err)
	}
	return s, events
}

// put records a container of sandbox "box".
func put(t *testing.T, s *Service, id string, state record.ContainerState, change ...func(*record.Container)) *record.Container {
	t.Helper()
	c := &record.Container{
		ID: id, SandboxID: "box", Handler: "runc", State: state, CreatedAt: time.Now(), StopSignal: "SIGTERM", Snapshotter: "overlayfs",
		Config: &runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: id}},
	}
	for _, f := range change {
		f(c)
	}
	if err := s.Store.Containers.Put(c); err != nil {
		t.Fatal(err)
	}
	return c
}

func get(t *testing.T, s *Service, id string) *record.Container {
	t.Helper()
	c, err := s.Store.Containers.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
