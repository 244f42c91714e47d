package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// maxFiles bounds the descriptors that come with one message.
const maxFiles = 8

// A Conn is one side of the control protocol. Messages are sent by one
// goroutine at a time and received by one at a time.
type Conn struct {
	*net.UnixConn
	in  []byte // received, not yet taken
	fds []int
}

// Dial connects to a control socket in an open directory: the path of a socket
// may have 107 bytes only.
func Dial(home string) (*Conn, error) {
	dir, err := os.Open(home)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	c, err := net.DialUnix("unix", nil, Address(dir, Control))
	if err != nil {
		return nil, err
	}
	return &Conn{UnixConn: c}, nil
}

// Address is a socket's address through an open directory; it is good while
// that is open.
func Address(dir *os.File, name string) *net.UnixAddr {
	return &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)}
}

// Send sends a message, with descriptors, which stay the caller's.
func (c *Conn) Send(v any, fds ...int) error {
	line, err := Line(v)
	if err != nil {
		return err
	}
	n := 0
	if len(fds) > 0 {
		if n, _, err = c.WriteMsgUnix(line, unix.UnixRights(fds...), nil); err != nil {
			return err
		}
	}
	if n < len(line) {
		_, err = c.Write(line[n:])
	}
	return err
}

// Receive takes the next message. The descriptors that came with it are the
// caller's to close; they are numbers, for a file of Go's would be polled.
// io.EOF: the other side has ended.
func (c *Conn) Receive(v any) (fds []int, err error) {
	for {
		if end := bytes.IndexByte(c.in, '\n'); end >= 0 {
			line := c.in[:end]
			c.in = c.in[end+1:]
			fds, c.fds = c.fds, nil
			if err := json.Unmarshal(line, v); err != nil {
				return nil, errors.Join(fmt.Errorf("a message is not understood: %w", err), Close(fds))
			}
			return fds, nil
		}
		if err = c.more(); err != nil {
			err = errors.Join(err, Close(c.fds))
			c.fds = nil
			return nil, err
		}
	}
}

// more receives some bytes and what came with them.
func (c *Conn) more() error {
	if len(c.in) >= MaxLine {
		return fmt.Errorf("a message is longer than %d bytes", MaxLine)
	}
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
	fds, oobErr := Descriptors(oob[:max(oobn, 0)])
	c.in, c.fds = append(c.in, buf[:max(n, 0)]...), append(c.fds, fds...) // n is -1 with an error
	switch {
	case oobErr != nil:
		return oobErr
	case len(c.fds) > maxFiles:
		return fmt.Errorf("more than %d descriptors came", maxFiles)
	case err == nil && n == 0:
		return io.EOF
	}
	return err
}

// Read reads what follows the messages that were received: frames.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.in) > 0 {
		n := copy(p, c.in)
		c.in = c.in[n:]
		return n, nil
	}
	return c.UnixConn.Read(p)
}

// Close closes descriptors.
func Close(fds []int) error {
	var errs []error
	for _, fd := range fds {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}

// Descriptors are those in control messages.
func Descriptors(oob []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			return fds, err
		}
		fds = append(fds, got...)
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return fds, nil
}
