package portmap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"berth/internal/network/builtin/nft"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Chains of the reference plugin.
const (
	chainAll    = "hostports_all"
	chainHostIP = "hostip_hostports" // of older versions, kept empty
	chainPorts  = "hostports"
	chainMasq   = "masquerading"
)

// batchTries is how often rules are listed again: one that was listed may be
// gone before it is removed.
const batchTries = 10

func table(v6 bool) nft.Table {
	t := nft.Table{Family: nft.IPv4, Name: "cni_hostport", Comment: "CNI portmap plugin"}
	if v6 {
		t.Family = nft.IPv6
	}
	return t
}

// nftables keeps the rules in a table of its own for each family. The
// container's rules have its ID as their comment.
type nftables struct{ kernel *nft.Pool }

func (n nftables) forward(_ context.Context, c *conf, id string, to netip.Prefix) error {
	addr, v6 := to.Addr(), to.Addr().Is6()
	b := nft.NewBatch(table(v6))
	shared(b, *c.SNAT)
	for _, p := range c.ports {
		if !p.of(v6) {
			continue
		}
		var match []expr.Any
		if p.only() {
			match = nft.Destination(p.hostIP)
		}
		b.AddRule(nft.Rule{
			Chain:   chainPorts,
			Exprs:   slices.Concat(match, nft.Port(protocols[p.protocol], p.host), nft.RedirectTo(netip.AddrPortFrom(addr, p.container))),
			Comment: id,
		})
	}
	if *c.SNAT {
		// What a container or, over 127.0.0.1, the host sends to a port of the
		// host and so to the container must come back by the same way.
		sources := []netip.Addr{addr}
		if !v6 {
			sources = append(sources, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		}
		for _, from := range sources {
			b.AddRule(nft.Rule{
				Chain:   chainMasq,
				Exprs:   slices.Concat(nft.Source(from), nft.Destination(addr), []expr.Any{nft.Masquerade()}),
				Comment: id,
			})
		}
	}
	if err := n.kernel.With(func(conn *nft.Conn) error { return conn.Run(b) }); err != nil {
		return fmt.Errorf("unable to set up nftables rules for port mappings: %w", err)
	}
	return nil
}

// shared makes what all containers' rules hang on.
func shared(b *nft.Batch, snat bool) {
	b.AddTable()
	b.AddChain(nft.Chain{Name: chainPorts})
	b.AddChain(nft.Chain{Name: chainHostIP})
	b.AddChain(nft.Chain{Name: chainAll})
	b.FlushChain(chainAll)
	b.AddRule(nft.Rule{Chain: chainAll, Exprs: []expr.Any{nft.Jump(chainHostIP)}})
	b.AddRule(nft.Rule{Chain: chainAll, Exprs: []expr.Any{nft.Jump(chainPorts)}})
	for _, base := range []struct {
		name string
		hook uint32
	}{{"prerouting", unix.NF_INET_PRE_ROUTING}, {"output", unix.NF_INET_LOCAL_OUT}} {
		b.AddChain(nft.Chain{Name: base.name, Hook: &nft.Hook{Number: base.hook, Priority: nft.PriorityDNAT}})
		b.FlushChain(base.name)
		b.AddRule(nft.Rule{Chain: base.name, Exprs: slices.Concat(nft.ToThisMachine(), []expr.Any{nft.Jump(chainAll)})})
	}
	if snat {
		b.AddChain(nft.Chain{Name: chainMasq, Hook: &nft.Hook{Number: unix.NF_INET_POST_ROUTING, Priority: nft.PrioritySNAT}})
	}
}

func (n nftables) check(_ context.Context, c *conf, id string, to netip.Prefix) error {
	v6 := to.Addr().Is6()
	want := map[string]int{}
	for _, p := range c.ports {
		if p.of(v6) {
			want[chainPorts]++
		}
	}
	if *c.SNAT {
		want[chainMasq] = map[bool]int{false: 2, true: 1}[v6]
	}
	return n.kernel.With(func(conn *nft.Conn) error {
		for chain, rules := range want {
			have, err := conn.Rules(table(v6), chain)
			if err != nil {
				return err
			}
			have = slices.DeleteFunc(have, func(r nft.Rule) bool { return r.Comment != id })
			if len(have) < rules {
				return fmt.Errorf("missing hostport rules in %q chain", chain)
			}
		}
		return nil
	})
}

func (n nftables) unforward(_ context.Context, _ *conf, id string) error {
	var errs []error
	for _, v6 := range []bool{false, true} {
		errs = append(errs, n.removeRules(table(v6), id))
	}
	return errors.Join(errs...)
}

func (n nftables) removeRules(t nft.Table, id string) error {
	var err error
	for range batchTries {
		err = n.kernel.With(func(conn *nft.Conn) error {
			b := nft.NewBatch(t)
			for _, chain := range []string{chainPorts, chainHostIP, chainMasq} {
				rules, err := conn.Rules(t, chain)
				if err != nil {
					return fmt.Errorf("could not list rules in table %s: %w", t.Name, err)
				}
				for _, r := range rules {
					if r.Comment == id {
						b.DelRule(r)
					}
				}
			}
			return conn.Run(b)
		})
		if !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("error deleting nftables rules: %w", err)
	}
	return nil
}
