package bridge

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// maxRemovals bounds the threads that wait for the kernel in removals.
	maxRemovals = 64
	// goneDelay is between two looks whether an interface is gone: the kernel
	// takes it off its list within a millisecond.
	goneDelay = 100 * time.Microsecond
)

// removals removes interfaces. The kernel takes one down, off the bridge and
// off its list at once. Then, without any lock, it makes the caller wait for
// all processors to forget it: 15 to 30 ms in which a pod's end would wait for
// what nobody can see any more. So the caller goes on, and a goroutine waits.
type removals struct {
	mu     sync.Mutex // guards under
	under  int        // way
	waiter sync.WaitGroup
}

func (r *removals) wait() { r.waiter.Wait() }

// begin counts one more that is left waiting, unless there are too many.
func (r *removals) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.under >= maxRemovals {
		return false
	}
	r.under++
	return true
}

func (r *removals) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.under--
}

// remove removes the container's interface, and with it the host's end. It is
// no error if either, or the namespace, is gone.
func (r *removals) remove(ctx context.Context, netns, name string) error {
	h, err := handleIn(netns)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("failed to open netns %q: %w", netns, err)
	}
	link, err := h.LinkByName(name)
	if err != nil {
		h.Close()
		if isNoLink(err) {
			return nil
		}
		return fmt.Errorf("failed to lookup %q: %w", name, err)
	}
	if !r.begin() {
		defer h.Close()
		return removeLink(h, link)
	}
	done := make(chan error, 1)
	r.waiter.Go(func() {
		defer h.Close()
		defer r.end()
		done <- removeLink(h, link)
	})
	return untilGone(ctx, netns, link, done)
}

// untilGone waits until the link is gone, or done says that it is or cannot.
func untilGone(ctx context.Context, netns string, link netlink.Link, done <-chan error) error {
	h, err := handleIn(netns)
	if err != nil {
		return <-done
	}
	defer h.Close()
	tick := time.NewTicker(goneDelay)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if _, err := h.LinkByIndex(link.Attrs().Index); isNoLink(err) || errors.Is(err, unix.ENODEV) {
			return nil
		}
	}
}

func removeLink(h *netlink.Handle, link netlink.Link) error {
	if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("failed to delete %q: %w", link.Attrs().Name, err)
	}
	return nil
}
