package portmap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"berth/internal/network/builtin/iptables"
	"berth/internal/network/builtin/nft"
)

// Chains of the reference plugin.
const (
	chainDNAT    = "CNI-HOSTPORT-DNAT"
	chainSetMark = "CNI-HOSTPORT-SETMARK"
	chainMarked  = "CNI-HOSTPORT-MASQ"
	// maxPorts is what one rule may name.
	maxPorts   = 15
	maxComment = 255
)

// tables keeps the container's rules in a chain of its own in the nat table of
// each family.
type tables struct {
	iptables.Programs
	kernel *nft.Pool
}

func dnatChain(c *conf, id string) string { return iptables.ChainName("DN-", c.Name, id) }

// oldChain is of versions before 0.7.
func oldChain(c *conf, id string) string { return iptables.ChainName("SN-", c.Name, id) }

func (t tables) forward(ctx context.Context, c *conf, id string, to netip.Prefix) error {
	v6 := to.Addr().Is6()
	err := t.Change(ctx, v6, func(have *iptables.Nat) []string {
		var lines []string
		if *c.SNAT {
			mark := fmt.Sprintf("%#[1]x/%#[1]x", 1<<*c.MarkMasqBit)
			lines = append(lines, have.With(chainSetMark,
				fmt.Sprintf(`-A %s -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark %s`, chainSetMark, mark))...)
			lines = append(lines, have.With(chainMarked, fmt.Sprintf("-A %s -m mark --mark %s -j MASQUERADE", chainMarked, mark))...)
			// Before the networks' own rules, which would end the matter.
			if jump := `POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j ` + chainMarked; !have.HasRule("-A " + jump) {
				lines = append(lines, strings.Replace("-I "+jump, "POSTROUTING", "POSTROUTING 1", 1))
			}
		}
		lines = append(lines, have.With(chainDNAT,
			"-A PREROUTING -m addrtype --dst-type LOCAL -j "+chainDNAT,
			"-A OUTPUT -m addrtype --dst-type LOCAL -j "+chainDNAT)...)
		return append(lines, have.With(dnatChain(c, id), append(portRules(c, id, to), entries(c, id)...)...)...)
	})
	if err != nil {
		return fmt.Errorf("unable to setup DNAT: %w", err)
	}
	return nil
}

// portRules are the rules of the container's chain: for each port those that
// mark what has to be masqueraded, then the one that forwards.
func portRules(c *conf, id string, to netip.Prefix) []string {
	v6, chain := to.Addr().Is6(), dnatChain(c, id)
	var rules []string
	for _, p := range c.ports {
		if !p.of(v6) {
			continue
		}
		match := fmt.Sprintf("-p %s -m %[1]s --dport %d", p.protocol, p.host)
		if p.only() {
			match = fmt.Sprintf("-d %s %s", netip.PrefixFrom(p.hostIP, p.hostIP.BitLen()), match)
		}
		switch {
		case !*c.SNAT:
		case c.MasqAll:
			rules = append(rules, fmt.Sprintf("-A %s %s -j %s", chain, match, chainSetMark))
		default:
			rules = append(rules, fmt.Sprintf("-A %s -s %s %s -j %s", chain, to.Masked(), match, chainSetMark))
			if !v6 {
				rules = append(rules, fmt.Sprintf("-A %s -s 127.0.0.1/32 %s -j %s", chain, match, chainSetMark))
			}
		}
		rules = append(rules, fmt.Sprintf("-A %s %s -j DNAT --to-destination %s", chain, match, netip.AddrPortFrom(to.Addr(), p.container)))
	}
	return rules
}

// entries are the rules that lead to the container's chain.
func entries(c *conf, id string) []string {
	comment := fmt.Sprintf(`dnat name: "%s" id: "%s"`, c.Name, id)
	if len(comment) > maxComment {
		comment = comment[:maxComment-2] + "..."
	}
	byProtocol := map[string][]string{}
	for _, p := range c.ports {
		byProtocol[p.protocol] = append(byProtocol[p.protocol], strconv.Itoa(int(p.host)))
	}
	var rules []string
	for _, protocol := range slices.Sorted(maps.Keys(byProtocol)) {
		for ports := range slices.Chunk(byProtocol[protocol], maxPorts) {
			rules = append(rules, fmt.Sprintf("-A %s -p %s -m comment --comment %s -m multiport --dports %s -j %s",
				chainDNAT, protocol, iptables.Quote(comment), strings.Join(ports, ","), dnatChain(c, id)))
		}
	}
	return rules
}

func (t tables) check(ctx context.Context, c *conf, id string, to netip.Prefix) error {
	chain, family := dnatChain(c, id), "ipv4"
	if to.Addr().Is6() {
		family = "ipv6"
	}
	have, err := t.Read(ctx, to.Addr().Is6())
	if err == nil && !have.HasChain(chain) {
		err = fmt.Errorf("chain %s not found in iptables table nat", chain)
	}
	if err != nil {
		return fmt.Errorf("could not check %s dnat: %w", family, err)
	}
	for _, rule := range append(portRules(c, id, to), entries(c, id)...) {
		if !have.HasRule(rule) {
			return fmt.Errorf("could not check %s dnat: rule %s not found in table nat", family, rule)
		}
	}
	return nil
}

func (t tables) unforward(ctx context.Context, c *conf, id string) error {
	var errs []error
	for _, v6 := range []bool{false, true} {
		may, err := iptables.MayHave(t.kernel, v6, dnatChain(c, id), oldChain(c, id))
		if err == nil && may {
			err = t.Change(ctx, v6, func(have *iptables.Nat) []string {
				return append(have.Without(dnatChain(c, id)), have.Without(oldChain(c, id))...)
			})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("could not teardown the host ports' chain: %w", err))
		}
	}
	return errors.Join(errs...)
}
