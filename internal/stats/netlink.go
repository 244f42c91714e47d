package stats

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth/internal/host"
)

// links asks for the interfaces of pods' network namespaces. It asks from
// outside: the kernel answers for another namespace than the socket's own if
// it is told its number there (IFLA_TARGET_NETNSID), so that one socket serves
// all pods, no thread enters a namespace, and nothing held keeps one alive. A
// kernel that refuses is asked from a thread inside.
type links struct {
	mu     sync.Mutex // guards what follows; held for the few microseconds of a question
	socket *netlinkSocket
	// inside is set once the kernel has refused.
	inside bool
	known  map[string]namespace // by path
	left   int                  // known after the last pruning
}

// A namespace is one that was given a number in ours. The number is its own
// until it ends, which its inode tells.
type namespace struct {
	inode  uint64
	number int32
}

// leastKnown is how many namespaces are remembered without a look at whether
// they are still there.
const leastKnown = 256

// errRefused says that the kernel does not answer for other namespaces.
var errRefused = errors.New("the kernel does not answer for other namespaces")

// of returns the interfaces of the namespace at path, but for loopback and
// those never up. ErrNotFound: there is no namespace.
func (l *links) of(path string) ([]link, error) {
	all, err := l.ask(path)
	if errors.Is(err, errRefused) {
		all, err = fromInside(path)
	}
	if err != nil {
		return nil, fmt.Errorf("network usage: %w", err)
	}
	return sorted(all), nil
}

func (l *links) ask(path string) ([]link, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inside {
		return nil, errRefused
	}
	if l.socket == nil {
		socket, err := newSocket()
		if err != nil {
			return nil, err
		}
		l.socket = socket
	}
	ns, known := l.known[path]
	if !known {
		var err error
		if ns, err = l.numberLocked(path); err != nil {
			return nil, err
		}
	}
	all, err := l.socket.linksOf(ns.number)
	// Only if the namespace is still there now was the number its own all the
	// time.
	switch inode, gone := inodeOf(path); {
	case gone != nil:
		delete(l.known, path)
		return nil, gone
	case inode != ns.inode:
		delete(l.known, path)
		return nil, fmt.Errorf("namespace %s: another one has taken its place: %w", path, errdefs.ErrNotFound)
	}
	for _, refusal := range []error{errRefused, unix.EOPNOTSUPP, unix.EINVAL, unix.EPERM, unix.EACCES} {
		if errors.Is(err, refusal) {
			l.inside = true
			err = errRefused
		}
	}
	if err != nil {
		delete(l.known, path)
	}
	return all, err
}

// numberLocked gives the namespace at path a number, if it has none.
func (l *links) numberLocked(path string) (ns namespace, err error) {
	if len(l.known) >= max(2*l.left, leastKnown) {
		maps.DeleteFunc(l.known, func(path string, ns namespace) bool {
			inode, err := inodeOf(path)
			return err != nil || inode != ns.inode
		})
		l.left = len(l.known)
	}
	if ns.inode, err = inodeOf(path); err != nil {
		return ns, err
	}
	fd, err := open(path)
	if err != nil {
		return ns, fmt.Errorf("open namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	if ns.number, err = l.socket.number(fd); errors.Is(err, unix.EINVAL) {
		return ns, fmt.Errorf("namespace %s: no network namespace is mounted there: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return ns, fmt.Errorf("number of namespace %s: %w", path, err)
	}
	if l.known == nil {
		l.known = map[string]namespace{}
	}
	l.known[path] = ns
	return ns, nil
}

func (l *links) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.socket == nil {
		return nil
	}
	err := l.socket.close()
	l.socket = nil
	return err
}

func inodeOf(path string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	if errors.Is(err, unix.ENOENT) {
		return 0, fmt.Errorf("namespace %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return 0, fmt.Errorf("namespace %s: %w", path, err)
	}
	return st.Ino, nil
}

// fromInside asks for the interfaces from a thread in the namespace.
func fromInside(path string) (all []link, err error) {
	err = host.InNetNS(path, func() error {
		socket, err := newSocket()
		if err != nil {
			return err
		}
		all, err = socket.linksOf(ownNamespace)
		return errors.Join(err, socket.close())
	})
	return all, err
}

// ownNamespace stands for the namespace of the socket.
const ownNamespace = -1

// A netlinkSocket puts questions to the kernel, one at a time.
type netlinkSocket struct {
	fd       int
	sequence uint32
	request  []byte
	answer   []byte
}

// answerTimeout bounds the wait for the kernel, which answers at once.
const answerTimeout = 5

func newSocket() (*netlinkSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: answerTimeout})
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("netlink socket: %w", err), unix.Close(fd))
	}
	return &netlinkSocket{fd: fd, answer: make([]byte, 32<<10)}, nil
}

func (s *netlinkSocket) close() error { return unix.Close(s.fd) }

// linksOf lists the interfaces of the namespace of that number.
func (s *netlinkSocket) linksOf(number int32) (all []link, err error) {
	body := make([]byte, unix.SizeofIfInfomsg, unix.SizeofIfInfomsg+8)
	if number != ownNamespace {
		body = attribute(body, unix.IFLA_TARGET_NETNSID, uint32(number))
	}
	err = s.ask(unix.RTM_GETLINK, unix.NLM_F_DUMP, body, func(kind uint16, data []byte) error {
		if kind != unix.RTM_NEWLINK {
			return nil
		}
		l, err := parseLink(data)
		if err == nil && l.target != number {
			err = errRefused // these are the links of the socket's own namespace
		}
		all = append(all, l)
		return err
	})
	return all, err
}

// number is that of the namespace behind fd in the socket's own, given to it
// now where it has none.
func (s *netlinkSocket) number(fd int) (int32, error) {
	for try := 0; ; try++ {
		number := int32(-1)
		get := attribute(make([]byte, unix.SizeofRtGenmsg, 16), unix.NETNSA_FD, uint32(fd))
		err := s.ask(unix.RTM_GETNSID, unix.NLM_F_ACK, get, func(kind uint16, data []byte) error {
			if kind != unix.RTM_NEWNSID || len(data) < 4 {
				return nil
			}
			return attributes(data[4:], func(kind uint16, value []byte) {
				if kind == unix.NETNSA_NSID && len(value) >= 4 {
					number = int32(binary.NativeEndian.Uint32(value))
				}
			})
		})
		if err != nil || number >= 0 {
			return number, err
		}
		if try > 0 {
			return number, errRefused
		}
		give := attribute(make([]byte, unix.SizeofRtGenmsg, 24), unix.NETNSA_FD, uint32(fd))
		give = attribute(give, unix.NETNSA_NSID, ^uint32(0)) // the next free one
		err = s.ask(unix.RTM_NEWNSID, unix.NLM_F_ACK, give, func(uint16, []byte) error { return nil })
		if err != nil && !errors.Is(err, unix.EEXIST) { // EEXIST: somebody gave it one meanwhile
			return number, err
		}
	}
}

// ask sends one request and calls take for each message of the answer.
func (s *netlinkSocket) ask(kind, flags uint16, body []byte, take func(kind uint16, data []byte) error) error {
	s.sequence++
	m := s.request[:0]
	m = binary.NativeEndian.AppendUint32(m, uint32(unix.SizeofNlMsghdr+len(body)))
	m = binary.NativeEndian.AppendUint16(m, kind)
	m = binary.NativeEndian.AppendUint16(m, flags|unix.NLM_F_REQUEST)
	m = binary.NativeEndian.AppendUint32(m, s.sequence)
	m = binary.NativeEndian.AppendUint32(m, 0)
	s.request = append(m, body...)
	if err := unix.Sendto(s.fd, s.request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink: send: %w", err)
	}
	for {
		n, _, err := unix.Recvfrom(s.fd, s.answer, unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("netlink: receive: %w", err)
		case n > len(s.answer):
			return fmt.Errorf("netlink: an answer of %d bytes", n)
		}
		if done, err := s.messages(s.answer[:n], take); done || err != nil {
			return err
		}
	}
}

// messages goes through one packet of an answer. done: it was the last one.
func (s *netlinkSocket) messages(packet []byte, take func(kind uint16, data []byte) error) (done bool, err error) {
	for len(packet) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(packet))
		if size < unix.SizeofNlMsghdr || size > len(packet) {
			return true, fmt.Errorf("netlink: a message of %d bytes in %d", size, len(packet))
		}
		kind, sequence, data := binary.NativeEndian.Uint16(packet[4:]), binary.NativeEndian.Uint32(packet[8:]), packet[unix.SizeofNlMsghdr:size]
		packet = packet[min(align(size), len(packet)):]
		if sequence != s.sequence {
			continue // of a question that was given up
		}
		switch kind {
		case unix.NLMSG_ERROR, unix.NLMSG_DONE:
			if len(data) >= 4 {
				if code := int32(binary.NativeEndian.Uint32(data)); code < 0 {
					return true, fmt.Errorf("netlink: %w", unix.Errno(-code))
				}
			}
			return true, nil
		}
		if err := take(kind, data); err != nil {
			return true, err
		}
	}
	return false, nil
}

// attribute appends a netlink attribute of 32 bits.
func attribute(m []byte, kind uint16, value uint32) []byte {
	m = append(m, make([]byte, align(len(m))-len(m))...)
	m = binary.NativeEndian.AppendUint16(m, unix.SizeofNlAttr+4)
	m = binary.NativeEndian.AppendUint16(m, kind)
	return binary.NativeEndian.AppendUint32(m, value)
}

// attributeType is an attribute's type without its flags.
const attributeType = ^uint16(unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)

// attributes calls take for each netlink attribute.
func attributes(data []byte, take func(kind uint16, value []byte)) error {
	for len(data) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(data))
		if size < unix.SizeofNlAttr || size > len(data) {
			return fmt.Errorf("an attribute of %d bytes in %d", size, len(data))
		}
		take(binary.NativeEndian.Uint16(data[2:])&attributeType, data[unix.SizeofNlAttr:size])
		data = data[min(align(size), len(data)):]
	}
	return nil
}

// align is the size up to the next message or attribute.
func align(n int) int { return (n + 3) &^ 3 }
