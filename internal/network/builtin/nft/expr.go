package nft

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// All expressions below are those that nft 1.0 compiles from the same words.

// Of tells the family of an address.
func Of(addr netip.Addr) Family {
	if addr.Is4() {
		return IPv4
	}
	return IPv6
}

// Only limits a rule of a table for both families to one of them.
func Only(f Family) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(f)}},
	}
}

// Source matches packets from an address.
func Source(addr netip.Addr) []expr.Any {
	return address(netip.PrefixFrom(addr, addr.BitLen()), expr.CmpOpEq, map[bool]uint32{true: 12, false: 8}[addr.Is4()])
}

// Destination matches packets to an address.
func Destination(addr netip.Addr) []expr.Any {
	return address(netip.PrefixFrom(addr, addr.BitLen()), expr.CmpOpEq, destination(addr))
}

// InNetwork matches packets to a network.
func InNetwork(p netip.Prefix) []expr.Any {
	return address(p, expr.CmpOpEq, destination(p.Addr()))
}

// OutsideNetwork matches packets to anywhere else.
func OutsideNetwork(p netip.Prefix) []expr.Any {
	return address(p, expr.CmpOpNeq, destination(p.Addr()))
}

func destination(addr netip.Addr) uint32 { return map[bool]uint32{true: 16, false: 24}[addr.Is4()] }

// address compares the first bits of an address in the packet's header: whole
// bytes as they are, others under a mask.
func address(p netip.Prefix, op expr.CmpOp, offset uint32) []expr.Any {
	want := p.Masked().Addr().AsSlice()
	load := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(want))}
	if bits := p.Bits(); bits > 0 && bits%8 == 0 {
		load.Len = uint32(bits / 8)
		return []expr.Any{load, &expr.Cmp{Op: op, Register: 1, Data: want[:bits/8]}}
	}
	mask := make([]byte, len(want))
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		load,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: load.Len, Mask: mask, Xor: make([]byte, len(want))},
		&expr.Cmp{Op: op, Register: 1, Data: want},
	}
}

// Port matches packets of a protocol (unix.IPPROTO_*) to a port.
func Port(protocol byte, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
	}
}

// ToThisMachine matches packets whose destination is a local address.
func ToThisMachine() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
	}
}

// RedirectTo translates the destination.
func RedirectTo(to netip.AddrPort) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(Of(to.Addr())), RegAddrMin: 1, RegProtoMin: 2},
	}
}

// Masquerade translates the source to the address that the packet leaves by.
func Masquerade() expr.Any { return &expr.Masq{} }

// Jump, Goto and Return are verdicts.
func Jump(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictJump, Chain: chain} }

// Goto goes on in another chain for good.
func Goto(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain} }

// Return ends a chain.
func Return() expr.Any { return &expr.Verdict{Kind: expr.VerdictReturn} }
