// Package nft writes and reads nftables over netlink.
//
// Purpose: what the reference plugins of CNI have the program nft do, without
// executing it. Tables, chains and rules come out as nft itself would make
// them, comments included, so that either side finds and removes what the
// other made.
//
// Invariants:
//   - A Batch is applied as a whole or not at all.
//   - A listing is of one generation of the rules: one that others changed
//     meanwhile is read again.
//
// Concurrency: a Pool is safe for concurrent use. A Conn belongs to one
// goroutine at a time. It works on the network namespace of the thread that
// opened it. The kernel serialises batches.
package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// replyTimeout bounds a wait for the kernel, which answers at once.
	replyTimeout = 10 // seconds
	// dumpTries is how often a listing is begun again.
	dumpTries = 50
	recvSize  = 64 << 10
	// headerLen is that of the netlink header and of nfgenmsg.
	headerLen = unix.SizeofNlMsghdr
	genLen    = 4
)

// Conn is a netlink socket to nf_tables.
type Conn struct {
	fd  int
	buf []byte // for answers, while the Pool lends it
	// broken: answers may be on their way that nobody waits for any more.
	broken    bool
	conntrack *netlink.Handle // nil until it is needed
}

// open opens a connection to the network namespace of the calling thread.
func open() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("nftables: socket: %w", err)
	}
	c := &Conn{fd: fd}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: replyTimeout})
	}
	if err == nil {
		// An error does not bring the message back that caused it.
		err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("nftables: socket: %w", err), c.Close())
	}
	return c, nil
}

// Close closes the socket.
func (c *Conn) Close() error {
	if c.conntrack != nil {
		c.conntrack.Close()
	}
	return os.NewSyscallError("close", unix.Close(c.fd))
}

// message renders one netlink message.
func message(kind, flags uint16, seq uint32, family Family, resource uint16, payload []byte) []byte {
	b := make([]byte, headerLen+genLen, headerLen+genLen+len(payload)+unix.NLMSG_ALIGNTO)
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], flags|unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(b[8:], seq)
	b[headerLen] = byte(family)
	binary.BigEndian.PutUint16(b[headerLen+2:], resource)
	b = append(b, payload...)
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

func kindOf(msg int) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | uint16(msg) }

func (c *Conn) send(b []byte) error {
	for {
		err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("sendto", err)
		}
	}
}

func (c *Conn) receive() ([]syscall.NetlinkMessage, error) {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return nil, fmt.Errorf("the kernel did not answer for %d s: %w", replyTimeout, errdefs.ErrUnavailable)
		case err != nil:
			return nil, os.NewSyscallError("recvfrom", err)
		case n > len(c.buf):
			return nil, fmt.Errorf("an answer of %d bytes: %w", n, errdefs.ErrOutOfRange)
		}
		return syscall.ParseNetlinkMessage(c.buf[:n])
	}
}

// errnoOf reads NLMSG_ERROR, which is also an acknowledgement.
func errnoOf(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 {
		return fmt.Errorf("a short answer: %w", errdefs.ErrOutOfRange)
	}
	if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// Run applies a batch. An error is that of the first operation that failed.
func (c *Conn) Run(b *Batch) error {
	if b.err != nil || len(b.ops) == 0 {
		return b.err
	}
	text := message(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil)
	c.broken = true
	for i, op := range b.ops {
		flags := op.flags
		if i == len(b.ops)-1 {
			flags |= unix.NLM_F_ACK
		}
		text = append(text, message(kindOf(op.kind), flags, uint32(i+1), op.family, 0, op.payload)...)
	}
	text = append(text, message(unix.NFNL_MSG_BATCH_END, 0, uint32(len(b.ops)+1), 0, unix.NFNL_SUBSYS_NFTABLES, nil)...)
	if err := c.send(text); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for {
		answers, err := c.receive()
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		for _, m := range answers {
			if m.Header.Type != unix.NLMSG_ERROR {
				continue
			}
			err := errnoOf(m)
			if seq := int(m.Header.Seq); err != nil && seq > 0 && seq <= len(b.ops) {
				return fmt.Errorf("nftables: %s: %w", b.ops[seq-1].what, err)
			}
			if err != nil {
				return fmt.Errorf("nftables: applying the rules: %w", err)
			}
			c.broken = false
			return nil // only the last operation asks for it
		}
	}
}

// errInterrupted: the rules were changed while they were listed.
var errInterrupted = fmt.Errorf("nftables: the rules are changed too often to be listed: %w", errdefs.ErrUnavailable)

// dump calls fn with the attributes of each object.
func (c *Conn) dump(kind int, family Family, payload []byte, fn func(attrs []byte) error) error {
	c.broken = true
	if err := c.send(message(kindOf(kind), unix.NLM_F_DUMP, 1, family, 0, payload)); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	interrupted := false
	var failed error
	for {
		answers, err := c.receive()
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		for _, m := range answers {
			interrupted = interrupted || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			switch {
			case m.Header.Type == unix.NLMSG_ERROR:
				c.broken = false // nothing comes after an error
				if err := errnoOf(m); !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
					return fmt.Errorf("nftables: listing: %w", err)
				}
				return errInterrupted
			case m.Header.Type == unix.NLMSG_DONE:
				c.broken = false
				if interrupted {
					return errInterrupted
				}
				return failed
			case len(m.Data) >= genLen && failed == nil:
				failed = fn(m.Data[genLen:])
			}
		}
	}
}
