package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"berth/internal/testkit"
)

// One hundred pods by sixteen clients, then removed: none fails, nothing is
// left.
func TestHundredPods(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a real daemon; not with -short")
	}
	const pods = 100
	d := testkit.StartDaemon(t, testkit.DaemonOptions{Config: map[string]any{"log.level": "info"}})
	c, err := d.Client()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pull(t.Context(), busybox); err != nil {
		t.Fatal(err)
	}
	if err := c.WarmUp(t.Context(), busybox); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // of a failure, for the other tests' sake
		if err := c.Clear(context.Background()); err != nil {
			t.Error(err)
		}
	})
	before, err := d.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fds, goroutines := openFiles(t, d), metric(t, d, "go_goroutines")

	clients, hangUp := dial(t, d, 16)
	running := make(chan *testkit.Pod, pods)
	begin := time.Now()
	parallel(t, clients, pods, func(ctx context.Context, c *testkit.Client) error {
		p, err := c.RunPod(ctx, c.PodConfig("many"))
		if err != nil {
			return err
		}
		running <- p
		ctr, err := p.Create(ctx, testkit.ContainerConfig(busybox, []string{"sleep", "1000"}))
		if err != nil {
			return err
		}
		return ctr.Start(ctx)
	})
	t.Logf("%d pods up in %s", pods, time.Since(begin))
	begin = time.Now()
	parallel(t, clients, pods, func(ctx context.Context, _ *testkit.Client) error { return (<-running).Remove(ctx) })
	t.Logf("and gone in %s", time.Since(begin))
	hangUp()

	if err := d.CheckHost(t.Context(), before); err != nil {
		t.Error(err)
	}
	testkit.Until(t, 20*time.Second, func(context.Context) string {
		if now := openFiles(t, d); now > fds+8 {
			return fmt.Sprintf("%d files are open, %d before", now, fds)
		}
		if now := metric(t, d, "go_goroutines"); now > goroutines+8 {
			return fmt.Sprintf("%d goroutines, %d before", now, goroutines)
		}
		return ""
	})
}

// dial makes clients with connections of their own.
func dial(t *testing.T, d *testkit.Daemon, n int) (clients []*testkit.Client, hangUp func()) {
	t.Helper()
	for range n {
		c, err := d.Dial()
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	hangUp = sync.OnceFunc(func() {
		for _, c := range clients {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(hangUp)
	return clients, hangUp
}

// parallel does a thing n times, all clients at it.
func parallel(t *testing.T, clients []*testkit.Client, n int, do func(context.Context, *testkit.Client) error) {
	t.Helper()
	work := make(chan struct{}, n)
	for range n {
		work <- struct{}{}
	}
	close(work)
	group, ctx := errgroup.WithContext(t.Context())
	for _, c := range clients {
		group.Go(func() error {
			for range work {
				if err := do(ctx, c); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

func openFiles(t *testing.T, d *testkit.Daemon) int {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.PID()))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// metric reads one of the daemon's metrics.
func metric(t *testing.T, d *testkit.Daemon, name string) int {
	t.Helper()
	resp, err := http.Get("http://" + d.MetricsAddress + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^` + name + ` ([0-9]+)`).FindSubmatch(text)
	if found == nil {
		t.Fatalf("no metric %s in\n%.2000s", name, text)
	}
	n, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
