package network

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// Result is what a pod got.
type Result struct {
	// IPs of eth0. The first IPv4 address is the first of all, as with
	// containerd; the others keep the plugins' order.
	IPs []string
	// Network is the name of the configuration.
	Network string
	// Raw is the plugins' result in the newest form of CNI.
	Raw json.RawMessage
}

func newResult(network string, from types.Result) (*Result, error) {
	r, err := types100.NewResultFromResult(from)
	if err != nil {
		return nil, fmt.Errorf("result of network %q: %w: %w", network, err, errdefs.ErrFailedPrecondition)
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	out := &Result{Network: network, Raw: raw}
	primary := -1
	for _, ip := range r.IPs {
		if !ofPod(r, ip) {
			continue
		}
		if primary < 0 && ip.Address.IP.To4() != nil {
			primary = len(out.IPs)
		}
		out.IPs = append(out.IPs, ip.Address.IP.String())
	}
	if len(out.IPs) == 0 {
		return nil, fmt.Errorf("network %q gave the pod's %s no address: its last plugin must pass on the result of those before it (and its IPAM must give one): %.500s: %w",
			network, ifName, raw, errdefs.ErrFailedPrecondition)
	}
	for ; primary > 0; primary-- {
		out.IPs[primary-1], out.IPs[primary] = out.IPs[primary], out.IPs[primary-1]
	}
	return out, nil
}

// ofPod tells whether an address is that of the pod's interface. An address
// that names no interface is, and so is one on an eth0 of plugins that never
// say where an interface is.
func ofPod(r *types100.Result, ip *types100.IPConfig) bool {
	if ip.Interface == nil {
		return true
	}
	if *ip.Interface < 0 || *ip.Interface >= len(r.Interfaces) {
		return false
	}
	i := r.Interfaces[*ip.Interface]
	inSandbox := func(i *types100.Interface) bool { return i.Sandbox != "" }
	return i.Name == ifName && (inSandbox(i) || !slices.ContainsFunc(r.Interfaces, inSandbox))
}
