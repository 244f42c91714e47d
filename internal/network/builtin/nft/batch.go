package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Family is that of a table.
type Family uint8

// Families of tables.
const (
	INet Family = unix.NFPROTO_INET
	IPv4 Family = unix.NFPROTO_IPV4
	IPv6 Family = unix.NFPROTO_IPV6
)

// CommentMax is the longest comment of a rule that nft reads and writes.
const CommentMax = 128

// Attributes of userdata that golang.org/x/sys/unix does not have.
const (
	tableUserdata = 6
	chainUserdata = 12
)

// Table names a table. The comment counts only when the table is made.
type Table struct {
	Family  Family
	Name    string
	Comment string
}

// Chain is a chain of a table: a base chain where Hook is not nil.
type Chain struct {
	Name    string
	Comment string
	Hook    *Hook
}

// Hook is where a base chain for address translation starts.
type Hook struct {
	Number   uint32 // unix.NF_INET_*
	Priority int32
}

// Priorities of address translation, by the names that nft has for them.
const (
	PriorityDNAT = -100
	PrioritySNAT = 100
)

// Rule is a rule of a chain.
type Rule struct {
	Chain   string
	Exprs   []expr.Any
	Comment string
	Handle  uint64 // of a rule that was listed
}

// Batch is a list of operations on one table.
type Batch struct {
	table Table
	ops   []op
	err   error
}

type op struct {
	kind    int
	flags   uint16
	family  Family
	payload []byte
	what    string
}

// NewBatch returns an empty batch.
func NewBatch(t Table) *Batch { return &Batch{table: t} }

// Empty tells whether there is nothing to do.
func (b *Batch) Empty() bool { return len(b.ops) == 0 }

func (b *Batch) add(kind int, flags uint16, what string, attrs ...netlink.Attribute) {
	payload, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		b.err = errors.Join(b.err, fmt.Errorf("nftables: %s: %w", what, err))
		return
	}
	b.ops = append(b.ops, op{kind, flags, b.table.Family, payload, what})
}

// AddTable makes the table unless it is there.
func (b *Batch) AddTable() {
	attrs := []netlink.Attribute{text(unix.NFTA_TABLE_NAME, b.table.Name), u32(unix.NFTA_TABLE_FLAGS, 0)}
	if b.table.Comment != "" {
		attrs = append(attrs, comment(tableUserdata, b.table.Comment))
	}
	b.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, "adding table "+b.table.Name, attrs...)
}

// AddChain makes a chain unless it is there.
func (b *Batch) AddChain(c Chain) {
	attrs := []netlink.Attribute{text(unix.NFTA_CHAIN_TABLE, b.table.Name), text(unix.NFTA_CHAIN_NAME, c.Name)}
	if c.Hook != nil {
		attrs = append(attrs,
			nested(unix.NFTA_CHAIN_HOOK, u32(unix.NFTA_HOOK_HOOKNUM, c.Hook.Number), u32(unix.NFTA_HOOK_PRIORITY, uint32(c.Hook.Priority))),
			text(unix.NFTA_CHAIN_TYPE, "nat"))
	}
	if c.Comment != "" {
		attrs = append(attrs, comment(chainUserdata, c.Comment))
	}
	b.add(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, "adding chain "+c.Name, attrs...)
}

// FlushChain removes all rules of a chain, which must be there.
func (b *Batch) FlushChain(chain string) {
	b.add(unix.NFT_MSG_DELRULE, 0, "flushing chain "+chain, text(unix.NFTA_RULE_TABLE, b.table.Name), text(unix.NFTA_RULE_CHAIN, chain))
}

// AddRule appends a rule to its chain.
func (b *Batch) AddRule(r Rule) {
	var exprs []netlink.Attribute
	for _, e := range r.Exprs {
		data, err := expr.Marshal(byte(b.table.Family), e)
		b.err = errors.Join(b.err, err)
		exprs = append(exprs, netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: data})
	}
	attrs := []netlink.Attribute{
		text(unix.NFTA_RULE_TABLE, b.table.Name),
		text(unix.NFTA_RULE_CHAIN, r.Chain),
		nested(unix.NFTA_RULE_EXPRESSIONS, exprs...),
	}
	if len(r.Comment) > CommentMax {
		b.err = errors.Join(b.err, fmt.Errorf("nftables: comment %.40q… is longer than %d bytes: %w", r.Comment, CommentMax, errdefs.ErrInvalidArgument))
		return
	}
	if r.Comment != "" {
		attrs = append(attrs, comment(unix.NFTA_RULE_USERDATA, r.Comment))
	}
	b.add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, "adding a rule to chain "+r.Chain, attrs...)
}

// DelRule removes a rule that was listed.
func (b *Batch) DelRule(r Rule) {
	handle := binary.BigEndian.AppendUint64(nil, r.Handle)
	b.add(unix.NFT_MSG_DELRULE, 0, fmt.Sprintf("removing rule %d of chain %s", r.Handle, r.Chain),
		text(unix.NFTA_RULE_TABLE, b.table.Name), text(unix.NFTA_RULE_CHAIN, r.Chain),
		netlink.Attribute{Type: unix.NFTA_RULE_HANDLE, Data: handle})
}

// Rules lists the rules of a chain, without what they do. Where there is no
// such table or chain there are no rules.
func (c *Conn) Rules(t Table, chain string) ([]Rule, error) {
	payload, err := netlink.MarshalAttributes([]netlink.Attribute{text(unix.NFTA_RULE_TABLE, t.Name), text(unix.NFTA_RULE_CHAIN, chain)})
	if err != nil {
		return nil, err
	}
	for range dumpTries {
		var rules []Rule
		err = c.dump(unix.NFT_MSG_GETRULE, t.Family, payload, func(attrs []byte) error {
			r, table, err := ruleFrom(attrs)
			if err == nil && table == t.Name && r.Chain == chain {
				rules = append(rules, r)
			}
			return err
		})
		if errors.Is(err, unix.ENOENT) {
			return nil, nil
		}
		if !errors.Is(err, errInterrupted) {
			return rules, err
		}
	}
	return nil, err
}

func ruleFrom(attrs []byte) (r Rule, table string, err error) {
	ad, err := netlink.NewAttributeDecoder(attrs)
	if err != nil {
		return r, "", err
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_RULE_TABLE:
			table = ad.String()
		case unix.NFTA_RULE_CHAIN:
			r.Chain = ad.String()
		case unix.NFTA_RULE_HANDLE:
			r.Handle = ad.Uint64()
		case unix.NFTA_RULE_USERDATA:
			r.Comment = commentOf(ad.Bytes())
		}
	}
	return r, table, ad.Err()
}

// commentOf finds the comment among what programs keep with a rule, each as
// type, length and value. Others write there too, so nothing is taken for
// granted.
func commentOf(data []byte) string {
	for len(data) >= 2 && len(data) >= 2+int(data[1]) {
		value := data[2 : 2+int(data[1])]
		if userdata.Type(data[0]) == userdata.TypeComment {
			return strings.TrimRight(string(value), "\x00")
		}
		data = data[2+len(value):]
	}
	return ""
}

// HasChain tells whether there is such a chain.
func (c *Conn) HasChain(t Table, chain string) (bool, error) {
	payload, err := netlink.MarshalAttributes([]netlink.Attribute{text(unix.NFTA_CHAIN_TABLE, t.Name), text(unix.NFTA_CHAIN_NAME, chain)})
	if err != nil {
		return false, err
	}
	c.broken = true
	if err := c.send(message(kindOf(unix.NFT_MSG_GETCHAIN), 0, 1, t.Family, 0, payload)); err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	answers, err := c.receive()
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	c.broken = false // the one answer is there
	for _, m := range answers {
		if m.Header.Type != unix.NLMSG_ERROR {
			return true, nil
		}
		err = errnoOf(m)
	}
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return false, fmt.Errorf("nftables: chain %s: %w", chain, err)
}

func text(kind uint16, s string) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: append([]byte(s), 0)}
}

func u32(kind uint16, v uint32) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: binary.BigEndian.AppendUint32(nil, v)}
}

func nested(kind uint16, attrs ...netlink.Attribute) netlink.Attribute {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		panic(err) // longer than an attribute can be: never with what this package makes
	}
	return netlink.Attribute{Type: unix.NLA_F_NESTED | kind, Data: data}
}

func comment(kind uint16, s string) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: userdata.AppendString(nil, userdata.TypeComment, s)}
}
