package reconcile

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/record"
	"berth/internal/steps"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A node has objects that behave as their names say: "hangs" until its context
// ends, "hangs-once", "panics". It notes what is done with them.
type node struct {
	mu    sync.Mutex // guards notes
	notes []string
	took  time.Duration // the start
}

func (n *node) note(what string) (times int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.notes = append(n.notes, what)
	return strings.Count(strings.Join(n.notes, "\n")+"\n", what+"\n")
}

func (n *node) has(what string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Contains(strings.Join(n.notes, "\n")+"\n", what+"\n")
}

func (n *node) behave(ctx context.Context, what, id string) error {
	times := n.note(what + " " + id)
	switch {
	case strings.Contains(id, "panics"):
		panic("boom")
	case strings.Contains(id, "hangs-once") && times == 1, strings.HasSuffix(id, "hangs"):
		<-ctx.Done()
		return ctx.Err()
	}
	n.note("done " + id)
	return nil
}

type boxes struct{ *node }

func (b boxes) Undo(ctx context.Context, op, id string) error { return b.behave(ctx, "undo", id) }
func (b boxes) Resume(box *record.Sandbox) error {
	return b.behave(context.Background(), "resume", box.ID)
}
func (boxes) Strays() ([]string, error) { return nil, nil }

type containers struct{ *node }

func (c containers) Undo(ctx context.Context, op, id string) error { return c.behave(ctx, "undo", id) }
func (c containers) Resume(ctx context.Context, r *record.Container) error {
	return c.behave(ctx, "resume", r.ID)
}
func (c containers) Remove(ctx context.Context, id string) error { return c.behave(ctx, "remove", id) }
func (containers) Strays(context.Context) ([]string, error)      { return nil, nil }

type images struct{ *node }

func (images) Undo(op, object string) []steps.Step { return nil }
func (i images) Sweep(ctx context.Context) error   { return i.behave(ctx, "sweep", "images") }

// start reconciles a node with one ready sandbox and containers of these
// states, and stops it when the test has looked.
func start(t *testing.T, states map[string]record.ContainerState, look func(*node, *strings.Builder)) {
	path := filepath.Join(t.TempDir(), "records.db")
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		logger := slog.New(slog.NewTextHandler(&log, nil))
		store, err := record.Open(t.Context(), path, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Sandboxes.Put(&record.Sandbox{ID: "box", State: record.SandboxReady, Config: &runtime.PodSandboxConfig{}}); err != nil {
			t.Fatal(err)
		}
		for id, state := range states {
			if err := store.Containers.Put(&record.Container{ID: id, SandboxID: "box", State: state, Config: &runtime.ContainerConfig{}}); err != nil {
				t.Fatal(err)
			}
		}
		n := &node{}
		ctx, cancel := context.WithCancel(t.Context())
		begun := time.Now()
		r, err := Run(ctx, Options{
			Store: store, Sandboxes: boxes{n}, Containers: containers{n}, Images: images{n}, Log: logger,
			Steps: steps.New(steps.Options{Journal: store, Log: logger}),
		})
		if err != nil {
			t.Fatal(err)
		}
		n.took = time.Since(begun)
		look(n, &log)
		cancel()
		r.Wait()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
}

// One container that cannot be taken up holds up neither the start nor others,
// and is tried again.
func TestStartIsBounded(t *testing.T) {
	start(t, map[string]record.ContainerState{
		"hangs": record.ContainerRunning, "hangs-once": record.ContainerRunning, "runs": record.ContainerRunning,
		"exited-hangs": record.ContainerExited, "exited": record.ContainerExited,
	}, func(n *node, log *strings.Builder) {
		for _, want := range []string{"done box", "done runs"} {
			if !n.has(want) {
				t.Errorf("calls are served before %q", want)
			}
		}
		synctest.Wait()
		time.Sleep(2 * retryFirst) // of the bubble's time
		synctest.Wait()
		if !n.has("done hangs-once") {
			t.Error("a container is not taken up late")
		}
		if !n.has("done exited") {
			t.Error("what hangs holds up the rest")
		}
		time.Sleep(actionTimeout + retryMost)
		synctest.Wait()
		if !n.has("done images") {
			t.Error("the sweep never comes")
		}
	})
}

func TestStartWaitsForPatienceOnly(t *testing.T) {
	states := map[string]record.ContainerState{}
	for _, id := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i"} { // more than atOnce
		states[id+"-hangs"] = record.ContainerRunning
	}
	states["runs"] = record.ContainerRunning
	start(t, states, func(n *node, log *strings.Builder) {
		if !n.has("done runs") {
			t.Error("a container is not taken up because others hang")
		}
		// The clock is the bubble's.
		if n.took > patience {
			t.Errorf("the start took %v", n.took)
		}
	})
}

func TestAPanicStopsNothing(t *testing.T) {
	start(t, map[string]record.ContainerState{
		"panics": record.ContainerRunning, "exited-panics": record.ContainerExited,
		"creating-panics": record.ContainerCreating, "creating": record.ContainerCreating,
	}, func(n *node, log *strings.Builder) {
		for _, want := range []string{"done box", "undo creating-panics", "done creating", "done images"} {
			if !n.has(want) {
				t.Errorf("not done: %q", want)
			}
		}
		if !strings.Contains(log.String(), "run_test.go") {
			t.Errorf("no stack in the log:\n%s", log)
		}
	})
}
