package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// gcParallel is how many stale attachments are detached at a time.
const gcParallel = 4

// hostLocalDir is where host-local keeps addresses unless told otherwise.
const hostLocalDir = "/var/lib/cni/networks"

// GC detaches what is attached for no pod in live: attachments whose DEL never
// came through, and addresses of the built-in network that have no owner. It
// must not run beside an Add. It goes on after a failure.
func (n *Network) GC(ctx context.Context, live []Pod) error {
	valid := map[string]bool{}
	var attached []types.GCAttachment
	for _, p := range live {
		valid[p.ID] = true
		attached = append(attached, types.GCAttachment{ContainerID: p.ID, IfName: ifName})
	}
	stale, err := n.stale(valid)
	errs := []error{err, n.dropUnowned(ctx)}
	var g errgroup.Group
	g.SetLimit(gcParallel)
	failed := make([]error, len(stale))
	for i, p := range stale {
		g.Go(func() error {
			n.opts.Log.Info("detaching a pod that is no more", "container", p.ID)
			failed[i] = n.Del(ctx, p)
			return nil
		})
	}
	_ = g.Wait() // failed has the errors
	errs = append(errs, failed...)
	if c, err := n.current(); err == nil && n.opts.Exclusive && !c.builtIn {
		gctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
		defer cancel()
		if err := n.cni.GCNetworkList(gctx, c.list, &libcni.GCArgs{ValidAttachments: attached}); err != nil {
			errs = append(errs, fmt.Errorf("GC of network %s: %w", c, err))
		}
	}
	return errors.Join(errs...)
}

// stale are the containers that something is kept or reserved for, and that
// are not valid.
func (n *Network) stale(valid map[string]bool) ([]Pod, error) {
	atts, err := n.attachments("")
	if err != nil {
		return nil, err
	}
	var pods []Pod
	seen := map[string]bool{}
	add := func(id, netns string) {
		if id != "" && !valid[id] && !seen[id] {
			seen[id] = true
			pods = append(pods, Pod{ID: id, NetNS: netns})
		}
	}
	for _, a := range atts {
		add(a.ContainerID, a.NetNS)
	}
	return pods, addresses(n.dataDir(), func(_, owner string) error { add(owner, ""); return nil })
}

// addresses calls fn for each address reserved in host-local's stores below
// dir, with its file and the container that owns it, empty for none.
func addresses(dir string, fn func(file, owner string) error) error {
	files, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if _, err := netip.ParseAddr(filepath.Base(file)); err != nil {
			continue // its lock, its last address
		}
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		owner, _, _ := bytes.Cut(text, []byte("\n"))
		if err := fn(file, string(bytes.TrimSpace(owner))); err != nil {
			return err
		}
	}
	return nil
}

// holdsAddress tells whether the built-in network gave the container one.
func (n *Network) holdsAddress(id string) (bool, error) {
	held := false
	err := addresses(n.dataDir(), func(_, owner string) error { held = held || owner == id; return nil })
	return held, err
}

// releaseAddresses frees what a container holds in host-local's stores when
// nothing tells any more which network gave it.
func (n *Network) releaseAddresses(id string) error {
	for _, dir := range []string{n.dataDir(), hostLocalDir} {
		err := addresses(dir, func(file, owner string) error {
			if owner != id {
				return nil
			}
			n.opts.Log.Info("freeing an address", "file", file, "container", id)
			if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("freeing addresses: %w", err)
		}
	}
	return nil
}

// dropUnowned removes reservations of the built-in network that name no
// container: host-local was killed between making the file and writing it. It
// holds the store's lock meanwhile, so none is at work.
func (n *Network) dropUnowned(ctx context.Context) error {
	stores, err := filepath.Glob(filepath.Join(n.dataDir(), "*", "lock"))
	if err != nil {
		return err
	}
	for _, lock := range stores {
		unlock, err := flock(ctx, lock)
		if err != nil {
			return fmt.Errorf("lock of an address store: %w", err)
		}
		err = addresses(n.dataDir(), func(file, owner string) error {
			if owner != "" || filepath.Dir(file) != filepath.Dir(lock) {
				return nil
			}
			return os.Remove(file)
		})
		if err = errors.Join(err, unlock()); err != nil {
			return err
		}
	}
	return nil
}

// flock takes the lock that host-local takes.
func flock(ctx context.Context, file string) (unlock func() error, err error) {
	f, err := os.OpenFile(file, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f.Close, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("%s: %w", file, err), f.Close())
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%s: %w", file, ctx.Err()), f.Close())
		}
	}
}
