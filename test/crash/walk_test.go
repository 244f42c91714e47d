package crash

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// tries bounds how often one call is made: every one of its steps fails at
// most twice.
const tries = 40

// A call is one of a pod's life. It fills in what the next ones need.
type call struct {
	op string
	do func(context.Context) error
}

// A kind changes what the pod of a life is, or its container.
type kind struct {
	pod       func(*cri.PodSandboxConfig)
	container func(*cri.ContainerConfig)
}

// plain is a pod whose containers share a PID namespace, so that it has an
// init, and isolated one in a user namespace, whose containers have an image as
// a volume.
var (
	plain    = kind{func(*cri.PodSandboxConfig) {}, func(*cri.ContainerConfig) {}}
	isolated = kind{
		func(p *cri.PodSandboxConfig) {
			ids := []*cri.IDMapping{{HostId: 9 << 16, Length: 1 << 16}}
			p.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Uids: ids, Gids: ids}
		},
		func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{Image: c.Image, ImageSubPath: "bin", ContainerPath: "/vol", Readonly: true}}
		},
	}
)

// life is the calls of a pod's whole life, in their order, on a daemon without
// the image.
func life(c *testkit.Client, image string, k kind) []call {
	config := c.PodConfig("walk", func(p *cri.PodSandboxConfig) {
		p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD // the init, too
		p.PortMappings = []*cri.PortMapping{{HostPort: 18080, ContainerPort: 80}}
	}, k.pod)
	container := testkit.ContainerConfig(image, []string{"sh", "-c", "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done"}, k.container)
	var pod *testkit.Pod
	var ctr *testkit.Container
	return []call{
		{"PullImage", func(ctx context.Context) error { _, err := c.Pull(ctx, image); return err }},
		{"RunPodSandbox", func(ctx context.Context) (err error) { pod, err = c.RunPod(ctx, config); return err }},
		{"CreateContainer", func(ctx context.Context) (err error) { ctr, err = pod.Create(ctx, container); return err }},
		{"StartContainer", func(ctx context.Context) error { return ctr.Start(ctx) }},
		{"StopContainer", func(ctx context.Context) error { return ctr.Stop(ctx, 5*time.Second) }},
		{"RemoveContainer", func(ctx context.Context) error { return ctr.Remove(ctx) }},
		{"StopPodSandbox", func(ctx context.Context) error { return pod.Stop(ctx) }},
		{"RemovePodSandbox", func(ctx context.Context) error { return pod.Remove(ctx) }},
		{"RemoveImage", func(ctx context.Context) error {
			_, err := c.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: image}})
			return err
		}},
	}
}

// A walker runs lives on one daemon under faults.
type walker struct {
	t      *testing.T
	d      *testkit.Daemon
	c      *testkit.Client
	kind   kind
	before string
	walked int
}

func newWalker(t *testing.T, k kind) *walker {
	t.Helper()
	w := &walker{t: t, kind: k, d: testkit.StartDaemon(t, testkit.DaemonOptions{Config: map[string]any{
		"runtime.handlers.boxed.type":    "io.containerd.runc.v2",
		"runtime.handlers.boxed.sandbox": "container",
	}})}
	c, err := w.d.Client()
	if err != nil {
		t.Fatal(err)
	}
	w.c = c.WithHandler(handler())
	w.live(t.Context(), nil)
	if w.before, err = w.d.Host(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

// live runs one life. A call that fails is made again, by a daemon started
// again where it was killed, until it succeeds. The faults are armed, and
// those that may still come armed again after a kill. It returns those that
// did not come: a fault may take away the reason of a later step.
func (w *walker) live(ctx context.Context, faults []string) []string {
	w.t.Helper()
	if err := w.d.Restart(ctx, arm(faults)); err != nil {
		w.t.Fatal(err)
	}
	for _, call := range life(w.c, busybox, w.kind) {
		var err error
		for range tries {
			if err = call.do(ctx); err == nil {
				break
			}
			faults = w.next(ctx, call, faults, err)
		}
		if err != nil {
			w.t.Fatalf("%s does not succeed: %v\n%s", call.op, err, w.d.Log(60))
		}
	}
	return faults
}

func arm(faults []string) string { return "BERTH_FAILPOINTS=" + strings.Join(faults, ",") }

// next looks which fault a failed call met, counts it, and returns those left.
func (w *walker) next(ctx context.Context, call call, faults []string, err error) []string {
	w.t.Helper()
	i := slices.IndexFunc(faults, func(f string) bool {
		point, what, _ := strings.Cut(f, "=")
		if what == "kill" {
			return strings.HasPrefix(f, call.op+"/")
		}
		return strings.Contains(err.Error(), "failpoint "+point) && !strings.Contains(err.Error(), "failpoint "+point+":")
	})
	if i < 0 {
		w.t.Fatalf("%s failed, and not by a fault: %v\n%s", call.op, err, w.d.Log(60))
	}
	w.walked++
	killed := strings.HasSuffix(faults[i], "=kill")
	faults = slices.Delete(slices.Clone(faults), i, i+1)
	if killed {
		w.waitForEnd(call.op)
		if err := w.d.Start(ctx, arm(faults)); err != nil {
			w.t.Fatalf("start after a kill in %s: %v\n%s", call.op, err, w.d.Log(60))
		}
	}
	return faults
}

// waitForEnd waits for a daemon that kills itself: its socket is gone before it.
func (w *walker) waitForEnd(op string) {
	w.t.Helper()
	select {
	case <-w.d.Ended():
	case <-time.After(20 * time.Second):
		w.t.Fatalf("the daemon lives after a kill in %s\n%s", op, w.d.Log(60))
	}
}

func (w *walker) check(what string) {
	w.t.Helper()
	if err := w.d.CheckHost(context.Background(), w.before); err != nil {
		w.t.Fatalf("after %s: %v\n%s", what, err, w.d.Log(60))
	}
}

// steps learns the steps of a life, as OP/STEP, in the order of their doing.
func (w *walker) steps(ctx context.Context) []string {
	w.t.Helper()
	trace := filepath.Join(w.t.TempDir(), "steps")
	if err := w.d.Restart(ctx, "BERTH_STEPS_TRACE="+trace); err != nil {
		w.t.Fatal(err)
	}
	for _, call := range life(w.c, busybox, w.kind) {
		if err := call.do(ctx); err != nil {
			w.t.Fatalf("%s: %v", call.op, err)
		}
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		w.t.Fatal(err)
	}
	var steps []string
	for line := range strings.Lines(string(text)) {
		if step := strings.TrimSpace(line); !slices.Contains(steps, step) {
			steps = append(steps, step)
		}
	}
	return steps
}

// TestEveryStep walks every step × fault.
func TestEveryStep(t *testing.T) { walk(t, plain) }

// TestEveryStepIsolated is that of a pod in a user namespace with an image
// volume.
func TestEveryStepIsolated(t *testing.T) { walk(t, isolated) }

func walk(t *testing.T, k kind) {
	w := newWalker(t, k)
	steps := w.steps(t.Context())
	ops := map[string]bool{}
	for _, s := range steps {
		op, _, _ := strings.Cut(s, "/")
		ops[op] = true
	}
	for _, call := range life(w.c, busybox, w.kind) {
		if !ops[call.op] {
			t.Errorf("%s has no steps", call.op)
		}
	}
	for _, kind := range []string{"=error", ":after=error", "=kill", ":after=kill"} {
		var faults []string
		for _, s := range steps {
			faults = append(faults, s+kind)
		}
		if !full() {
			for len(faults) > 0 {
				left := w.live(t.Context(), faults)
				w.check(fmt.Sprintf("%d steps with %s", len(faults)-len(left), kind))
				if len(left) == len(faults) {
					t.Fatalf("faults that are never met: %v", left)
				}
				faults = left
			}
			continue
		}
		for _, f := range faults {
			if left := w.live(t.Context(), []string{f}); len(left) > 0 {
				t.Errorf("fault %s is not met", f)
			}
			w.check(f)
		}
	}
	t.Logf("walked %d steps × 4 faults: %d", len(steps), w.walked)
}
