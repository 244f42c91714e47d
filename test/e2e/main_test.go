// Package e2e tests each RPC over the socket of a real daemon against real
// containers, on embedded and on external containerd.
//
// Tests share one daemon a target and run in parallel, so each makes pods and
// images of its own names and removes them. What the host held before the
// tests is compared with what it holds after them, in TestMain. A test that
// kills or configures the daemon starts one of its own.
package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"berth/internal/testkit"
	"berth/internal/testkit/registrytest"
)

// A target is a daemon and the runtime handler that pods are run with.
type target struct {
	name   string
	client *testkit.Client
}

var (
	targets  []target
	registry *registrytest.Registry
	// busybox is the reference of the image that all daemons have, busyboxID
	// its ID.
	busybox, busyboxID string
)

func TestMain(m *testing.M) {
	testkit.Main(m, func() (func() error, error) {
		flag.Parse()
		if testing.Short() {
			return nil, nil
		}
		if !slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "-test.parallel") }) {
			// Most tests wait for containers, not for a processor.
			if err := flag.Set("test.parallel", "6"); err != nil {
				return nil, err
			}
		}
		return setup()
	})
}

func setup() (func() error, error) {
	var err error
	if registry, err = registrytest.New(); err != nil {
		return nil, err
	}
	img, err := testkit.Image(testkit.ImageOptions{})
	if err != nil {
		return nil, err
	}
	if _, err := registry.Push("busybox:1", img); err != nil {
		return nil, err
	}
	busybox, busyboxID = registry.Ref("busybox:1"), testkit.ID(img)

	wanted := "embedded/berth,external/berth"
	if env := os.Getenv("BERTH_TEST_TARGETS"); env != "" {
		wanted = env
	}
	byEngine := map[string]*shared{}
	teardown := func() error {
		var errs []error
		for _, s := range byEngine {
			errs = append(errs, s.check())
		}
		for _, s := range byEngine { // whose bridge is in the others' state
			errs = append(errs, s.d.Close())
		}
		return errors.Join(append(errs, registry.Close())...)
	}
	for name := range strings.SplitSeq(wanted, ",") {
		engine, handler, _ := strings.Cut(name, "/")
		if byEngine[engine] == nil {
			s, err := share(engine == "external", strings.Contains(wanted, "/runsc"))
			if s != nil {
				byEngine[engine] = s
			}
			if err != nil {
				return teardown, fmt.Errorf("%s: %w", name, err)
			}
		}
		client := byEngine[engine].client.WithHandler(handler)
		// Handlers leave directories of their own with their first pod.
		if err := client.WarmUp(context.Background(), busybox); err != nil {
			return teardown, fmt.Errorf("%s: %w", name, err)
		}
		targets = append(targets, target{strings.ReplaceAll(name, "/", "-"), client})
	}
	for _, s := range byEngine {
		if s.before, err = s.d.Host(context.Background()); err != nil {
			return teardown, err
		}
	}
	return teardown, nil
}

// shared is a daemon that tests share, and the host before them.
type shared struct {
	d      *testkit.Daemon
	client *testkit.Client
	before string
}

func share(external, gvisor bool) (*shared, error) {
	ctx := context.Background()
	d, err := testkit.NewDaemon(testkit.DaemonOptions{External: external, GVisor: gvisor, Config: map[string]any{
		"runtime.handlers.boxed.type":    "io.containerd.runc.v2",
		"runtime.handlers.boxed.sandbox": "container",
	}})
	if err != nil {
		return nil, err
	}
	s := &shared{d: d}
	if err := d.Start(ctx); err != nil {
		return s, err
	}
	if s.client, err = d.Client(); err != nil {
		return s, err
	}
	if _, err := s.client.Pull(ctx, busybox); err != nil {
		return s, err
	}
	if err := podCIDR(ctx, s.client, "10.99.0.0/24"); err != nil { // kept in a file from the first one on
		return s, err
	}
	// The first container of a shim starts the hold process.
	return s, errors.Join(s.client.WarmUp(ctx, busybox), s.client.WithHandler("boxed").WarmUp(ctx, busybox))
}

// check wants the host back as it was before the tests.
func (s *shared) check() error {
	if s.before == "" {
		return nil
	}
	err := errors.Join(s.client.Clear(context.Background(), busyboxID), s.d.CheckHost(context.Background(), s.before))
	if err != nil {
		return fmt.Errorf("%w\nlog of the daemon:\n%s", err, s.d.Log(40))
	}
	return nil
}

// each runs a test on every target, in parallel with the others.
func each(t *testing.T, f func(t *testing.T, c *testkit.Client)) {
	t.Helper()
	t.Parallel()
	if len(targets) == 0 {
		t.Skip("needs real daemons; not with -short")
	}
	for _, target := range targets {
		t.Run(target.name, func(t *testing.T) {
			t.Parallel()
			supported(t, target.client.Handler)
			f(t, target.client)
		})
	}
}

// image pushes an image of its own and pulls it; it is removed at the end.
func image(t *testing.T, c *testkit.Client, o testkit.ImageOptions) string {
	t.Helper()
	ref, _ := pushed(t, o)
	if _, err := c.Pull(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	removeImage(t, c, ref)
	return ref
}

// pushed pushes an image of its own.
func pushed(t *testing.T, o testkit.ImageOptions) (ref string, img v1.Image) {
	t.Helper()
	repo := testkit.Name(t.Name())
	o.Salt += repo
	img, err := testkit.Image(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Push(repo+":1", img); err != nil {
		t.Fatal(err)
	}
	return registry.Ref(repo + ":1"), img
}
