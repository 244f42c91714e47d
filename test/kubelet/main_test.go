// Package kubelet runs a real kubelet on a daemon under test and checks, through
// the kubelet's own API, that pods do what Kubernetes promises of them.
//
// The kubelet is standalone: its pods are manifests in a directory. It and the
// daemon run in the namespaces of the test binary (internal/testkit), with
// directories, ports and cgroups of their own, so nothing of the machine is
// touched. Tests share one node a target and run in parallel, so each makes
// pods of its own names and takes them away. A test that restarts anything
// starts a node of its own.
//
// `make test-kubelet` sets BERTH_KUBELET; without it every test is skipped.
package kubelet

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth/internal/testkit"
	"berth/internal/testkit/registrytest"
)

// Where the node is found in the test's network namespace.
const (
	nodeName    = "node"
	nodeAddress = "192.0.2.10"
)

// A target is a node that tests share and what it was started with.
type target struct {
	name string
	opts nodeOptions
	node *node
}

var (
	targets = []*target{
		{name: "generic", opts: nodeOptions{cadvisor: true}},
		// What the runtime tells of itself: events and statistics.
		{name: "evented", opts: nodeOptions{gates: map[string]bool{"EventedPLEG": true, fromCRI: true, "CRIListStreaming": true}}},
	}
	registry *registrytest.Registry
	// busybox is the plain image, probed the one with a gRPC health service.
	busybox, probed string
	imageIDs        []string
)

func TestMain(m *testing.M) {
	testkit.Main(m, func() (func() error, error) {
		flag.Parse()
		if program() == "" {
			return nil, nil
		}
		if !slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "-test.parallel") }) {
			// Most tests wait for containers, not for a processor.
			if err := flag.Set("test.parallel", "8"); err != nil {
				return nil, err
			}
		}
		return setup()
	})
}

// program is the kubelet, "" where none was built for this run.
func program() string { return os.Getenv("BERTH_KUBELET") }

func setup() (func() error, error) {
	if err := errors.Join(hideMachine(), addNodeAddress()); err != nil {
		return nil, err
	}
	var err error
	if registry, err = registrytest.New(); err != nil {
		return nil, err
	}
	if err := pushImages(); err != nil {
		return registry.Close, err
	}
	if wanted := os.Getenv("BERTH_TEST_TARGETS"); wanted != "" {
		targets = slices.DeleteFunc(targets, func(t *target) bool { return !slices.Contains(strings.Split(wanted, ","), t.name) })
	}
	teardown := func() error {
		var errs []error
		for _, t := range targets {
			if t.node != nil {
				errs = append(errs, named(t.name, t.node.check()))
			}
		}
		for _, t := range targets { // whose bridge is in the others' state
			if t.node != nil {
				errs = append(errs, named(t.name, t.node.close()))
			}
		}
		return errors.Join(append(errs, registry.Close())...)
	}
	for _, t := range targets {
		if t.node, err = newNode(t.opts); err != nil {
			return teardown, named(t.name, err)
		}
	}
	for _, t := range targets { // with the bridges of all
		if err := t.node.begin(); err != nil {
			return teardown, named(t.name, err)
		}
	}
	return teardown, nil
}

func named(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}

func pushImages() error {
	bin, err := os.ReadFile(filepath.Join(filepath.Dir(program()), "probed"))
	if err != nil {
		return err
	}
	for repo, files := range map[string]map[string]string{"busybox:1": nil, "probed:1": {"bin/probed": string(bin)}} {
		img, err := testkit.Image(testkit.ImageOptions{Files: files})
		if err != nil {
			return err
		}
		if _, err := registry.Push(repo, img); err != nil {
			return err
		}
		imageIDs = append(imageIDs, testkit.ID(img))
	}
	busybox, probed = registry.Ref("busybox:1"), registry.Ref("probed:1")
	return nil
}

// hideMachine puts this mount namespace's own files over those that a kubelet
// changes and that no setting moves: the kernel's tunables, which it then finds
// as it wants them, its links to logs and its socket for devices.
func hideMachine() error {
	// Volumes with mount propagation want a shared root; it stays the slave of
	// the machine's.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share /: %w", err)
	}
	for _, dir := range []string{"/var/log", "/var/lib"} {
		if err := unix.Mount("hidden", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	// What is hidden in /proc would keep the kernel from giving a user namespace
	// one of its own, were there no whole one.
	if err := os.MkdirAll("/run/whole-proc", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/run/whole-proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("another /proc: %w", err)
	}
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10",
		"kernel/panic_on_oops": "1", "kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		file := "/run/tunables/" + filepath.Base(name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, "/proc/sys/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("hide %s: %w", name, err)
		}
	}
	return nil
}

// addNodeAddress gives the node an address that is not loopback.
func addNodeAddress() error {
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "node0"}}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("the node's link: %w", err)
	}
	addr, err := netlink.ParseAddr(nodeAddress + "/24")
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
}

// each runs a test on every target, in parallel with the others.
func each(t *testing.T, f func(t *testing.T, n *node)) {
	t.Helper()
	t.Parallel()
	needKubelet(t)
	for _, target := range targets {
		t.Run(target.name, func(t *testing.T) {
			t.Parallel()
			f(t, target.node)
		})
	}
}

func needKubelet(t *testing.T) {
	t.Helper()
	if program() == "" {
		t.Skip("needs a kubelet: make test-kubelet")
	}
}
