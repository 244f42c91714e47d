package bridge

import (
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"berth/internal/network/builtin/iptables"
	"berth/internal/network/builtin/nft"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The table of the reference plugins. A rule is found by the beginning of its
// comment: a hash of the network, one of the interface and the container.
const (
	masqChain   = "masq_checks"
	postrouting = "postrouting"
	hashLength  = 16
	batchTries  = 10 // a rule that was listed may be gone before it is removed
)

var masqTable = nft.Table{
	Family: nft.INet, Name: "cni_plugins_masquerade",
	Comment: "Masquerading for plugins from github.com/containernetworking/plugins",
}

const masqComment = "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet"

// Networks of multicast, which is for this network's own.
var (
	multicast4 = netip.MustParsePrefix("224.0.0.0/4")
	multicast6 = netip.MustParsePrefix("ff00::/8")
)

func hash(s string) string { return fmt.Sprintf("%x", sha512.Sum512([]byte(s)))[:hashLength] }

func networkPrefix(network string) string { return hash(network) }

func instancePrefix(network, ifname, id string) string {
	return hash(network) + "-" + hash(ifname+":"+id)
}

func instanceComment(network, ifname, id string) string {
	plain := strings.NewReplacer(`"`, "")
	c := fmt.Sprintf("%s, net: %s, if: %s, id: %s", instancePrefix(network, ifname, id), plain.Replace(network), plain.Replace(ifname), plain.Replace(id))
	return c[:min(len(c), nft.CommentMax)]
}

// masquerade hides the container's addresses from what is not its network.
func (a *attach) masquerade(ctx context.Context) error {
	if !a.IPMasq || !a.layer3() {
		return nil
	}
	var addrs []netip.Prefix
	for _, ip := range a.result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		bits, _ := ip.Address.Mask.Size()
		addrs = append(addrs, netip.PrefixFrom(addr.Unmap(), bits))
	}
	backend := "iptables"
	if a.IPMasqBackend != nil {
		backend = *a.IPMasqBackend
	} else if !a.iptables.Supported(ctx) && a.NFT.Supported() {
		backend = "nftables"
	}
	a.undo = append(a.undo, func(ctx context.Context) error {
		return a.unmasquerade(ctx, a.iptables, a.Name, a.args.IfName, a.args.ContainerID)
	})
	switch backend {
	case "iptables":
		return masqueradeIPTables(ctx, a.iptables, addrs, a.Name, a.args.ContainerID)
	case "nftables":
		return a.masqueradeNFT(addrs, a.Name, a.args.IfName, a.args.ContainerID)
	}
	return fmt.Errorf("unknown ipmasq backend %q", backend)
}

// masqueradeNFT adds the container's rules, and those that all share.
func (p *Plugin) masqueradeNFT(addrs []netip.Prefix, network, ifname, id string) error {
	return p.onRules(instancePrefix(network, ifname, id), func(b *nft.Batch, stale []nft.Rule) {
		b.AddTable()
		b.AddChain(nft.Chain{Name: masqChain, Comment: masqComment})
		b.AddChain(nft.Chain{Name: postrouting, Hook: &nft.Hook{Number: unix.NF_INET_POST_ROUTING, Priority: nft.PrioritySNAT}})
		b.FlushChain(postrouting)
		for _, net := range []netip.Prefix{multicast4, multicast6} {
			b.AddRule(nft.Rule{Chain: postrouting, Exprs: slices.Concat(nft.Only(nft.Of(net.Addr())), nft.InNetwork(net), []expr.Any{nft.Return()})})
		}
		b.AddRule(nft.Rule{Chain: postrouting, Exprs: []expr.Any{nft.Goto(masqChain)}})
		for _, r := range stale {
			b.DelRule(r)
		}
		for _, p := range addrs {
			b.AddRule(nft.Rule{
				Chain:   masqChain,
				Exprs:   slices.Concat(nft.Only(nft.Of(p.Addr())), nft.Source(p.Addr()), nft.OutsideNetwork(p), []expr.Any{nft.Masquerade()}),
				Comment: instanceComment(network, ifname, id),
			})
		}
	})
}

// onRules applies what fn gives for the rules whose comment has the prefix.
func (p *Plugin) onRules(prefix string, fn func(*nft.Batch, []nft.Rule)) error {
	var err error
	for range batchTries {
		err = p.NFT.With(func(c *nft.Conn) error {
			rules, err := c.Rules(masqTable, masqChain)
			if err != nil {
				return err
			}
			b := nft.NewBatch(masqTable)
			fn(b, slices.DeleteFunc(rules, func(r nft.Rule) bool { return !strings.HasPrefix(r.Comment, prefix) }))
			return c.Run(b)
		})
		if !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	return err
}

// unmasquerade removes the container's rules, whichever backend made them.
func (p *Plugin) unmasquerade(ctx context.Context, programs iptables.Programs, network, ifname, id string) error {
	var errs []error
	chain := iptables.ChainName("", network, id)
	for _, v6 := range []bool{false, true} {
		may, err := iptables.MayHave(p.NFT, v6, chain)
		if err == nil && may {
			err = programs.Change(ctx, v6, func(have *iptables.Nat) []string { return have.Without(chain) })
		}
		errs = append(errs, err)
	}
	if p.NFT.Supported() {
		errs = append(errs, p.onRules(instancePrefix(network, ifname, id), removeAll))
	}
	return errors.Join(errs...)
}

func removeAll(b *nft.Batch, rules []nft.Rule) {
	for _, r := range rules {
		b.DelRule(r)
	}
}

// collectMasquerade removes a network's rules that are of none of the
// attachments. Chains of iptables do not tell what network they are of.
func (p *Plugin) collectMasquerade(network string, valid []types.GCAttachment) error {
	if !p.NFT.Supported() {
		return nil
	}
	keep := map[string]bool{}
	for _, v := range valid {
		keep[instanceComment(network, v.IfName, v.ContainerID)] = true
	}
	return p.onRules(networkPrefix(network)+"-", func(b *nft.Batch, rules []nft.Rule) {
		removeAll(b, slices.DeleteFunc(rules, func(r nft.Rule) bool { return keep[r.Comment] }))
	})
}

// masqueradeIPTables adds the container's chain, which both its rules and what
// leads to it name by a hash of network and container.
func masqueradeIPTables(ctx context.Context, p iptables.Programs, addrs []netip.Prefix, network, id string) error {
	chain := iptables.ChainName("", network, id)
	comment := iptables.Quote(fmt.Sprintf("name: %q id: %q", network, id))
	for _, v6 := range []bool{false, true} {
		var rules []string
		multicast := multicast4
		if v6 {
			multicast = multicast6
		}
		for _, a := range addrs {
			if a.Addr().Is6() != v6 {
				continue
			}
			rules = append(rules,
				fmt.Sprintf("-A %s -d %s -m comment --comment %s -j ACCEPT", chain, a.Masked(), comment),
				fmt.Sprintf("-A %s ! -d %s -m comment --comment %s -j MASQUERADE", chain, multicast, comment),
				fmt.Sprintf("-A POSTROUTING -s %s -m comment --comment %s -j %s", netip.PrefixFrom(a.Addr(), a.Addr().BitLen()), comment, chain))
		}
		if len(rules) == 0 {
			continue
		}
		err := p.Change(ctx, v6, func(have *iptables.Nat) []string { return have.With(chain, rules...) })
		if err != nil {
			return err
		}
	}
	return nil
}
