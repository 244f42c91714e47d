// Package hostlocal gives addresses as the reference plugin host-local does.
//
// Purpose: IPAM in process. What is free is decided by the reference's own
// allocator, and what is taken is kept in its files, so that the program
// host-local can go on where this stopped, and the other way round.
//
// Invariants:
//   - The store is changed only under its lock file, which the program takes
//     too.
//   - An Add that fails keeps no address.
//
// Concurrency: safe for concurrent use. Calls for one store wait for each
// other, in the order that they come, and no longer than their context lets
// them.
package hostlocal

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
)

// Plugin is host-local. The zero value is ready.
type Plugin struct{ locks locks }

// Keys that are understood, of the whole and of its parts.
var (
	ipamKeys  = []string{"type", "name", "routes", "dataDir", "resolvConf", "ranges", "subnet", "rangeStart", "rangeEnd", "gateway"}
	rangeKeys = []string{"subnet", "rangeStart", "rangeEnd", "gateway"}
	routeKeys = []string{"dst", "gw", "mtu", "advmss", "priority", "table", "scope"}
)

// Unsupported names the first key of a configuration that only the program may
// know, or is empty. It looks at what IPAM is about and at nothing else, for it
// gets the whole configuration of the plugin that asks for addresses.
func (*Plugin) Unsupported(conf []byte) string {
	var c struct {
		IPAM          map[string]json.RawMessage
		RuntimeConfig map[string]json.RawMessage
	}
	if json.Unmarshal(conf, &c) != nil {
		return ""
	}
	for key := range c.IPAM {
		if !slices.Contains(ipamKeys, key) {
			return "ipam." + key
		}
	}
	var routes []map[string]json.RawMessage
	var ranges [][]map[string]json.RawMessage
	// What is no list of objects is an error that Add tells of.
	_ = json.Unmarshal(c.IPAM["routes"], &routes)
	_ = json.Unmarshal(c.IPAM["ranges"], &ranges)
	for _, r := range routes {
		for key := range r {
			if !slices.Contains(routeKeys, key) {
				return "ipam.routes." + key
			}
		}
	}
	for _, r := range slices.Concat(ranges...) {
		for key := range r {
			if !slices.Contains(rangeKeys, key) {
				return "ipam.ranges." + key
			}
		}
	}
	return ""
}

// Add gives one address of each set of ranges.
func (p *Plugin) Add(ctx context.Context, args *skel.CmdArgs) (types.Result, error) {
	conf, _, err := allocator.LoadIPAMConfig(args.StdinData, args.Args)
	if err != nil {
		return nil, err
	}
	result := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Routes: conf.Routes}
	if conf.ResolvConf != "" {
		if result.DNS, err = readResolvConf(conf.ResolvConf); err != nil {
			return nil, err
		}
	}
	store, err := p.open(ctx, conf.Name, conf.DataDir)
	if err != nil {
		return nil, err
	}
	result.IPs, err = allocate(conf, store, args)
	if err = errors.Join(err, store.Close()); err != nil {
		return nil, err
	}
	return result, nil
}

// allocate takes the addresses, all of them or none.
func allocate(conf *allocator.IPAMConfig, store *store, args *skel.CmdArgs) (ips []*types100.IPConfig, err error) {
	wanted := map[string]net.IP{}
	for _, ip := range conf.IPArgs {
		wanted[ip.String()] = ip
	}
	var used []*allocator.IPAllocator
	defer func() {
		if err == nil {
			return
		}
		for _, a := range used {
			err = errors.Join(err, a.Release(args.ContainerID, args.IfName))
		}
	}()
	for i, set := range conf.Ranges {
		a := allocator.NewIPAllocator(&set, store, i)
		var requested net.IP
		for key, ip := range wanted {
			if set.Contains(ip) {
				requested = ip
				delete(wanted, key)
				break
			}
		}
		ip, err := a.Get(args.ContainerID, args.IfName, requested)
		if err != nil {
			return nil, fmt.Errorf("failed to allocate for range %d: %w", i, err)
		}
		used = append(used, a)
		ips = append(ips, ip)
	}
	if len(wanted) > 0 {
		text := "failed to allocate all requested IPs:"
		for key := range wanted {
			text += " " + key
		}
		return nil, errors.New(text)
	}
	return ips, nil
}

// Del gives back what the container holds.
func (p *Plugin) Del(ctx context.Context, args *skel.CmdArgs) error {
	conf, _, err := allocator.LoadIPAMConfig(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	store, err := p.open(ctx, conf.Name, conf.DataDir)
	if err != nil {
		return err
	}
	if err = store.Lock(); err == nil {
		// One search is for all ranges: the store knows no ranges.
		err = errors.Join(store.ReleaseByID(args.ContainerID, args.IfName), store.Unlock())
	}
	return errors.Join(err, store.Close())
}

// Check tells whether the container holds an address.
func (p *Plugin) Check(ctx context.Context, args *skel.CmdArgs) error {
	conf, _, err := allocator.LoadIPAMConfig(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	store, err := p.open(ctx, conf.Name, conf.DataDir)
	if err != nil {
		return err
	}
	if err = store.Lock(); err == nil {
		if len(store.GetByID(args.ContainerID, args.IfName)) == 0 {
			err = fmt.Errorf("host-local: Failed to find address added by container %v", args.ContainerID)
		}
		err = errors.Join(err, store.Unlock())
	}
	return errors.Join(err, store.Close())
}

// Status tells whether addresses can be given. Like the reference it always
// can: a full range is no reason to stop a node.
func (*Plugin) Status(context.Context, *skel.CmdArgs) error { return nil }

// GC gives back what no valid attachment holds. The program does nothing here.
func (p *Plugin) GC(ctx context.Context, args *skel.CmdArgs) error {
	var valid types.PluginConf
	if err := json.Unmarshal(args.StdinData, &valid); err != nil {
		return err
	}
	conf, _, err := allocator.LoadIPAMConfig(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	store, err := p.open(ctx, conf.Name, conf.DataDir)
	if err != nil {
		return err
	}
	if err = store.Lock(); err == nil {
		err = errors.Join(store.releaseAllBut(valid.ValidAttachments), store.Unlock())
	}
	return errors.Join(err, store.Close())
}

// readResolvConf takes name servers from a file such as /etc/resolv.conf.
func readResolvConf(name string) (dns types.DNS, err error) {
	f, err := os.Open(name)
	if err != nil {
		return dns, err
	}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || strings.ContainsAny(words[0][:1], "#;") {
			continue
		}
		switch words[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, words[1])
		case "domain":
			dns.Domain = words[1]
		case "search":
			dns.Search = append(dns.Search, words[1:]...)
		case "options":
			dns.Options = append(dns.Options, words[1:]...)
		}
	}
	return dns, errors.Join(lines.Err(), f.Close())
}
