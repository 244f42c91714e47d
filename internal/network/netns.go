package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"berth/internal/host"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
)

// loopbackUp brings lo up in the pod's namespace. It takes two netlink messages
// from here; the loopback plugin would take an execution for each ADD and DEL,
// and nobody reads its result.
func loopbackUp(path string) error {
	err := host.InNetNS(path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		return fmt.Errorf("bringing up the loopback: %w", err)
	}
	return nil
}

// netnsFor is the namespace for a DEL, and what to do after it. Plugins in
// process need none.
func (n *Network) netnsFor(a *libcni.NetworkAttachment, list *libcni.NetworkConfigList, fallback string) (string, func() error, error) {
	for _, path := range []string{a.NetNS, fallback} {
		if path == "" {
			continue
		}
		err := host.InNetNS(path, func() error { return nil })
		if err == nil {
			return path, func() error { return nil }, nil
		}
		if !errdefs.IsNotFound(err) {
			return "", nil, err
		}
	}
	for _, p := range list.Plugins {
		if !n.exec.inProcess.Knows(p.Network.Type, p.Bytes) {
			return n.standIn(a)
		}
	}
	return a.NetNS, func() error { return nil }, nil
}

// standIn makes a namespace in place of one that is gone, with the pod's
// interface in it. Without them the bridge plugin leaves the pod's masquerade
// rules behind: it learns from the interface whose they are.
func (n *Network) standIn(a *libcni.NetworkAttachment) (string, func() error, error) {
	dir := filepath.Join(n.opts.CacheDir, "stand-in-"+a.ContainerID)
	if err := host.PinNamespaces(dir, host.NamespaceOptions{Net: true}); err != nil {
		return "", nil, fmt.Errorf("a namespace in place of the pod's, which is gone: %w", err)
	}
	done := func() error { return host.UnpinNamespaces(dir) }
	path := filepath.Join(dir, "net")
	addrs, err := n.cachedAddrs(a)
	if err == nil && len(addrs) > 0 {
		err = host.InNetNS(path, func() error { return placeholder(a.IfName, addrs) })
	}
	if err != nil {
		// The rest of the DEL is worth doing.
		n.opts.Log.Warn("no interface in place of a pod's, which is gone; masquerade rules of iptables may stay",
			"container", a.ContainerID, "interface", a.IfName, "err", err)
	}
	return path, done, nil
}

// placeholder makes an interface that has the addresses: one end of a veth
// pair, which every kernel that runs pods has.
func placeholder(name string, addrs []netlink.Addr) error {
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "peer"}
	if err := netlink.LinkAdd(link); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	for _, addr := range addrs {
		if err := netlink.AddrReplace(link, &addr); err != nil {
			return err
		}
	}
	return nil
}

// cachedAddrs are the addresses that the ADD gave, where libcni keeps them.
func (n *Network) cachedAddrs(a *libcni.NetworkAttachment) ([]netlink.Addr, error) {
	list, err := libcni.NetworkConfFromBytes(a.Config)
	if err != nil {
		return nil, err
	}
	res, err := n.cni.GetNetworkListCachedResult(list, &libcni.RuntimeConf{ContainerID: a.ContainerID, IfName: a.IfName})
	if err != nil || res == nil {
		return nil, err
	}
	r, err := types100.NewResultFromResult(res)
	if err != nil {
		return nil, err
	}
	var addrs []netlink.Addr
	for _, ip := range r.IPs {
		if ofPod(r, ip) {
			addrs = append(addrs, netlink.Addr{IPNet: &ip.Address})
		}
	}
	return addrs, nil
}
