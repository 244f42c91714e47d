// Package crash makes every step of every operation fail, and kills the daemon
// at every step and at random, and checks that the same call again succeeds
// and that nothing is lost or left behind.
//
// The steps are not listed here: a daemon that traces them tells
// (BERTH_STEPS_TRACE), and failpoints of their names do the rest
// (internal/steps/failpoint.go). BERTH_CRASH_FULL=1 walks each step × fault
// alone, as `make test-crash` does; without it all steps of a kind of fault are
// walked in one life of a pod. BERTH_CRASH_KILLS is the number of random kills.
// BERTH_CRASH_HANDLER is the runtime handler of the walked and the killed pods:
// berth, runc, or boxed, which is runc with a sandbox container.
package crash

import (
	"errors"
	"os"
	"strconv"
	"testing"

	"berth/internal/testkit"
	"berth/internal/testkit/registrytest"
)

var (
	registry  *registrytest.Registry
	busybox   string // the reference of the plain image
	busyboxID string
)

func TestMain(m *testing.M) {
	testkit.Main(m, func() (func() error, error) {
		var err error
		if registry, err = registrytest.New(); err != nil {
			return nil, err
		}
		img, err := testkit.Image(testkit.ImageOptions{})
		if err != nil {
			return registry.Close, err
		}
		_, err = registry.Push("busybox:1", img)
		busybox, busyboxID = registry.Ref("busybox:1"), testkit.ID(img)
		return registry.Close, err
	})
}

// handler is that of the pods of walkers; "" is the daemon's default.
func handler() string { return os.Getenv("BERTH_CRASH_HANDLER") }

func full() bool { return os.Getenv("BERTH_CRASH_FULL") != "" }

// kills is how often the daemon is killed at random.
func kills(t *testing.T) int {
	text := os.Getenv("BERTH_CRASH_KILLS")
	if text == "" {
		return 4
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatal(errors.New("BERTH_CRASH_KILLS is a number from 1: " + text))
	}
	return n
}
