package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
)

// cleanupTimeout bounds the DEL after a failed ADD. What it does not finish,
// the next Del does.
const cleanupTimeout = 15 * time.Second

// Add attaches the pod to the current network. Where it fails nothing stays
// behind, unless the error says so; then Del finishes the job.
func (n *Network) Add(ctx context.Context, p Pod) (*Result, error) {
	c, err := n.current()
	if err == nil {
		// Else DEL would end at the plugin that is missing and never come to
		// those that ran.
		err = n.installed(c)
	}
	if err != nil {
		return nil, fmt.Errorf("network of pod %s: %w", p, err)
	}
	rt, err := runtimeConf(p, n.cidrs())
	if err != nil {
		return nil, err
	}
	if _, wants := rt.CapabilityArgs["portMappings"]; wants && !declares(c.list, "portMappings") {
		if c.builtIn {
			return nil, fmt.Errorf("network of pod %s: it asks for host ports, which need nft or iptables: install nftables: %w", p, errdefs.ErrFailedPrecondition)
		}
		n.opts.Log.Warn("host ports of a pod are ignored: no plugin of its network declares the capability portMappings", "pod", p.String(), "network", c.list.Name)
	}
	if err := loopbackUp(p.NetNS); err != nil {
		return nil, fmt.Errorf("network of pod %s: %w", p, err)
	}
	if err := n.intend(c, rt); err != nil {
		return nil, fmt.Errorf("network of pod %s: %w", p, err)
	}
	r, err := n.add(ctx, c, rt)
	if err == nil {
		// From here on libcni's cache holds what a DEL needs.
		err = n.forget(p.ID)
	}
	if err == nil {
		return r, nil
	}
	err = fmt.Errorf("attaching pod %s to network %s: %w", p, c, err)
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(cleanupTimeout, n.opts.Timeout))
	defer cancel()
	if derr := n.Del(cctx, p); derr != nil {
		err = fmt.Errorf("%w (and what was done of it is left for the pod's removal: %w)", err, derr)
	}
	return nil, err
}

func (n *Network) add(ctx context.Context, c *conf, rt *libcni.RuntimeConf) (*Result, error) {
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	res, err := n.libcniFor(c).AddNetworkList(ctx, c.list, rt)
	if err != nil {
		return nil, err
	}
	return newResult(c.list.Name, res)
}

// cidrs is the pod CIDR.
func (n *Network) cidrs() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.podCIDR
}

func declares(list *libcni.NetworkConfigList, capability string) bool {
	for _, p := range list.Plugins {
		if p.Network.Capabilities[capability] {
			return true
		}
	}
	return false
}

// Del detaches the pod from every network that it was attached to. It is
// idempotent, and works when the namespace is gone, when the ADD was cut and
// when the configuration has changed since.
func (n *Network) Del(ctx context.Context, p Pod) error {
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	atts, err := n.attachments(p.ID)
	if err != nil {
		return fmt.Errorf("detaching pod %s: %w", p, err)
	}
	known := len(atts) > 0
	if !known {
		atts, err = n.presumed(p)
		if err != nil {
			return fmt.Errorf("detaching pod %s: %w", p, err)
		}
	}
	var errs []error
	for _, a := range atts {
		if err := n.del(ctx, p, a); err != nil {
			errs = append(errs, fmt.Errorf("detaching pod %s from network %q: %w", p, a.Network, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if !known {
		if err := n.releaseAddresses(p.ID); err != nil {
			return fmt.Errorf("detaching pod %s: %w", p, err)
		}
	}
	return n.forget(p.ID)
}

// presumed is what a pod of which nothing is kept may be attached to: the
// current network, and the built-in one where it gave the pod an address.
func (n *Network) presumed(p Pod) ([]*libcni.NetworkAttachment, error) {
	rt, err := runtimeConf(p, n.cidrs())
	if err != nil {
		// Bad ports or annotations: no ADD got past them either.
		rt = &libcni.RuntimeConf{ContainerID: p.ID, NetNS: p.NetNS, IfName: ifName}
	}
	var confs []*conf
	c, err := n.current()
	if err == nil {
		confs = append(confs, c)
	}
	if err != nil || !c.builtIn {
		held, err := n.holdsAddress(p.ID)
		if err != nil {
			return nil, err
		}
		if held {
			n.mu.Lock()
			list, err := n.defaultConfLocked().list()
			n.mu.Unlock()
			if err != nil {
				return nil, err
			}
			confs = append(confs, &conf{list: list, builtIn: true})
		}
	}
	var atts []*libcni.NetworkAttachment
	for _, c := range confs {
		atts = append(atts, attachment(c, rt))
	}
	return atts, nil
}

// del runs DEL with the configuration that the attachment was made with.
func (n *Network) del(ctx context.Context, p Pod, a *libcni.NetworkAttachment) error {
	list, err := libcni.NetworkConfFromBytes(a.Config)
	if err != nil {
		return fmt.Errorf("its kept configuration: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	c := &conf{list: list, builtIn: isBuiltIn(a.Config)}
	netns, done, err := n.netnsFor(a, list, p.NetNS)
	if err != nil {
		return err
	}
	err = n.libcniFor(c).DelNetworkList(ctx, list, &libcni.RuntimeConf{
		ContainerID:    a.ContainerID,
		NetNS:          netns,
		IfName:         a.IfName,
		Args:           a.CniArgs,
		CapabilityArgs: a.CapabilityArgs,
	})
	return errors.Join(err, done())
}

// Check asks the plugins whether the pod's network is still as they made it.
func (n *Network) Check(ctx context.Context, p Pod) error {
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	atts, err := n.attachments(p.ID)
	if err != nil {
		return fmt.Errorf("checking the network of pod %s: %w", p, err)
	}
	if len(atts) == 0 {
		return fmt.Errorf("checking the network of pod %s: it is attached to none: %w", p, errdefs.ErrNotFound)
	}
	for _, a := range atts {
		list, err := libcni.NetworkConfFromBytes(a.Config)
		if err == nil {
			err = n.libcniFor(&conf{builtIn: isBuiltIn(a.Config)}).CheckNetworkList(ctx, list, &libcni.RuntimeConf{
				ContainerID: a.ContainerID, NetNS: a.NetNS, IfName: a.IfName, Args: a.CniArgs, CapabilityArgs: a.CapabilityArgs,
			})
		}
		if err != nil && !errors.Is(err, libcni.ErrorCheckNotSupp) {
			return fmt.Errorf("checking the network of pod %s: %w", p, err)
		}
	}
	return nil
}
