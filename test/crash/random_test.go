package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

const (
	clients = 8
	// retryFor bounds the retries of one call that kills cut.
	retryFor = 2 * time.Minute
)

// TestKilledAtRandom kills the daemon while clients run whole lives of pods.
// After each start the pods that were there run on; every call that was cut
// succeeds when it is made again; at the end the host is as before.
func TestKilledAtRandom(t *testing.T) {
	w := newWalker(t, plain)
	if _, err := w.c.Pull(t.Context(), busybox); err != nil {
		t.Fatal(err)
	}
	keeper := w.c.Pod(t)
	kept := keeper.Container(t, busybox, []string{"sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"})
	began := kept.Status(t).StartedAt

	var lives, retried atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := oneLife(t.Context(), w.c, &retried); err != nil {
					t.Error(err)
					return
				}
				lives.Add(1)
			}
		})
	}
	n := kills(t)
	for i := range n {
		time.Sleep(time.Duration(rand.Int64N(int64(2 * time.Second)))) // the moment of the kill, not a wait for anything
		if err := w.d.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := w.d.Start(t.Context()); err != nil {
			t.Fatalf("start after kill %d: %v\n%s", i+1, err, w.d.Log(60))
		}
		if s := kept.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt != began {
			t.Fatalf("after kill %d the container that ran is %v, started at %d and not %d: %s", i+1, s.State, s.StartedAt, began, s.Message)
		}
	}
	close(stop)
	wg.Wait()
	if t.Failed() {
		return
	}
	wantCounted(t, kept)
	if err := keeper.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.c.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: busybox}}); err != nil {
		t.Fatal(err)
	}
	w.check("the kills")
	t.Logf("%d kills, %d whole lives of pods, %d calls made again", n, lives.Load(), retried.Load())
	if lives.Load() < int64(n) {
		t.Errorf("only %d whole lives", lives.Load())
	}
}

// wantCounted wants the numbers in the log without a gap, however often the
// daemon that wrote them was killed.
func wantCounted(t *testing.T, c *testkit.Container) {
	t.Helper()
	lines, err := testkit.ReadLog(c.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range lines {
		if want := fmt.Sprint(i + 1); line.Text != want {
			t.Fatalf("line %d of the log is %q", i+1, line.Text)
		}
	}
}

// oneLife runs a pod through its life; the image is there.
func oneLife(ctx context.Context, c *testkit.Client, retried *atomic.Int64) error {
	config := c.PodConfig("killed")
	container := testkit.ContainerConfig(busybox, []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done"})
	var pod *testkit.Pod
	var ctr *testkit.Container
	for _, call := range []call{
		{"RunPodSandbox", func(ctx context.Context) (err error) { pod, err = c.RunPod(ctx, config); return err }},
		{"CreateContainer", func(ctx context.Context) (err error) { ctr, err = pod.Create(ctx, container); return err }},
		{"StartContainer", func(ctx context.Context) error { return ctr.Start(ctx) }},
		{"StopContainer", func(ctx context.Context) error { return ctr.Stop(ctx, 5*time.Second) }},
		{"RemovePodSandbox", func(ctx context.Context) error { return pod.Remove(ctx) }},
	} {
		if err := again(ctx, call, retried); err != nil {
			return fmt.Errorf("%s of pod %s: %w", call.op, config.Metadata.Name, err)
		}
	}
	return nil
}

// again makes a call until it is not cut by the daemon's end.
func again(ctx context.Context, call call, retried *atomic.Int64) error {
	ctx, cancel := context.WithTimeout(ctx, retryFor)
	defer cancel()
	for {
		err := call.do(ctx)
		if code := status.Code(err); code != codes.Unavailable && code != codes.Canceled {
			return err
		}
		retried.Add(1)
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}
