package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"berth/internal/host"
)

const (
	// dialTimeout is for each of the pod's two loopback addresses.
	dialTimeout = 10 * time.Second
	// halfOpenTimeout ends a forwarded connection of which one side has sent
	// its end, and the other one sends nothing for that long.
	halfOpenTimeout = 10 * time.Minute
)

// loopback are the addresses that a port is looked for at, in their order.
var loopback = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

func checkPort(port int32) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("port-forward: port %d is not in 1..65535: %w", port, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Forward connects stream with a TCP port on the loopback of the network
// namespace at netns ("": the host's), and copies both ways until both sides
// have sent their end, one of them breaks, or ctx ends. The end of one way
// leaves the other one open. What does not listen, on IPv4 or on IPv6, is an
// ErrUnavailable that says so. A pod with a kernel of its own has a loopback of
// its own, too: for it addresses are the pod's, where the port is looked for
// from the host when nothing answers in the namespace.
func Forward(ctx context.Context, netns string, port int32, stream io.ReadWriteCloser, addresses ...netip.Addr) error {
	if err := checkPort(port); err != nil {
		return err
	}
	conn, err := dialPort(ctx, netns, uint16(port), addresses)
	if err != nil {
		return err
	}
	defer conn.Close() // broken or at its end in both ways
	return pipe(ctx, conn, stream, halfOpenTimeout)
}

// dialPort tries the loopback addresses in the namespace, then the others from
// the host, in their order.
func dialPort(ctx context.Context, netns string, port uint16, others []netip.Addr) (*net.TCPConn, error) {
	var errs []error
	for i, addr := range slices.Concat(loopback, others) {
		to := netip.AddrPortFrom(addr, port)
		where := netns
		if i >= len(loopback) {
			where = ""
		}
		c, err := dialIn(ctx, where, to)
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if ctx.Err() != nil || errdefs.IsNotFound(err) { // the namespace is gone
			return nil, fmt.Errorf("port-forward to port %d: %w", port, err)
		}
		errs = append(errs, fmt.Errorf("%s: %w", to, err))
	}
	return nil, fmt.Errorf("port-forward: nothing answers on port %d in the pod: %w: %w", port, errors.Join(errs...), errdefs.ErrUnavailable)
}

// dialIn connects to an address in a network namespace. A socket belongs to
// the namespace it is made in, so a thread joins it for that only.
func dialIn(ctx context.Context, netns string, to netip.AddrPort) (*net.TCPConn, error) {
	family := unix.AF_INET
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(to.Port()), Addr: as4(to.Addr())}
	if to.Addr().Is6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	fd := -1
	open := func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
		return err
	}
	if netns == "" {
		if err := open(); err != nil {
			return nil, err
		}
	} else if err := host.InNetNS(netns, open); err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), to.String()) // non-blocking: the runtime polls it
	defer f.Close()                           // FileConn has a descriptor of its own
	if err := connect(ctx, f, sa); err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// as4 is an IPv4 address's bytes, zero for others.
func as4(a netip.Addr) (b [4]byte) {
	if a.Is4() {
		b = a.As4()
	}
	return b
}

// connect connects the socket f and waits until it is.
func connect(ctx context.Context, f *os.File, sa unix.Sockaddr) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var cerr error
	if err := raw.Control(func(fd uintptr) { cerr = unix.Connect(int(fd), sa) }); err != nil {
		return err
	}
	if cerr == nil || !errors.Is(cerr, unix.EINPROGRESS) {
		return cerr
	}
	defer context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })()
	err = raw.Write(func(fd uintptr) bool {
		cerr = connected(int(fd))
		return !errors.Is(cerr, unix.EINPROGRESS)
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	return errors.Join(err, cerr)
}

// connected tells how a connection attempt stands: EINPROGRESS, its error, or
// nil.
func connected(fd int) error {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(poll, 0); err != nil || n == 0 {
		return unix.EINPROGRESS
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if code != 0 {
		return unix.Errno(code)
	}
	return nil
}

// pipe copies between a connection to a pod and a client's stream until both
// ways have ended. idle is how long it stays half open with nothing sent.
func pipe(ctx context.Context, pod *net.TCPConn, client io.ReadWriteCloser, idle time.Duration) error {
	var moved atomic.Int64 // bytes, both ways
	up, down := make(chan copied, 1), make(chan copied, 1)
	go func() {
		c := copyTo(pod, client, &moved)
		if c == (copied{}) {
			c.write = pod.CloseWrite()
		}
		up <- c
	}()
	go func() {
		c := copyTo(client, pod, &moved)
		if c == (copied{}) {
			c.write = client.Close() // of a SPDY stream: its own way only
		}
		down <- c
	}()
	pending := 2
	err := watch(ctx, up, down, &pending, &moved, idle)
	if pending > 0 {
		_ = pod.Close() // the error that made it necessary is what counts
		_ = client.Close()
		if c, ok := client.(interface{ Reset() error }); ok {
			_ = c.Reset() // ends a SPDY stream's reading too
		}
	}
	for ; pending > 0; pending-- {
		select {
		case <-up:
		case <-down:
		}
	}
	if errors.Is(err, context.Canceled) {
		return nil // the client has gone
	}
	return err
}

// watch waits for both ways to end. It returns early with pending ways left
// when one of them breaks, ctx ends, or nothing is sent on what is left.
func watch(ctx context.Context, up, down <-chan copied, pending *int, moved *atomic.Int64, idle time.Duration) error {
	ticker := time.NewTicker(idle)
	defer ticker.Stop()
	last := int64(-1)
	for *pending > 0 {
		select {
		case c := <-up:
			*pending--
			if c.read != nil {
				return context.Canceled // the client broke off
			}
			// A pod that takes no more may still be sending.
		case c := <-down:
			*pending--
			if c.read != nil {
				return fmt.Errorf("port-forward: the pod broke off the connection: %w", c.read)
			}
			if c.write != nil {
				return context.Canceled
			}
		case <-ticker.C:
			now := moved.Load()
			if *pending == 1 && now == last {
				return fmt.Errorf("port-forward: one side has ended and the other one sent nothing for %s: %w", idle, errdefs.ErrAborted)
			}
			last = now
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// copied is how copying ended: at the end of what is read, or by an error of
// either side.
type copied struct{ read, write error }

func copyTo(dst io.Writer, src io.Reader, moved *atomic.Int64) copied {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		moved.Add(int64(n))
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return copied{write: werr}
			}
		}
		if errors.Is(err, io.EOF) {
			return copied{}
		}
		if err != nil {
			return copied{read: err}
		}
	}
}
