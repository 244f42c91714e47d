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
	in    []byte // received, not yet taken
	files []*os.File
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

// Send sends a message, with descriptors.
func (c *Conn) Send(v any, files ...*os.File) error {
	line, err := Line(v)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		_, err = c.Write(line)
		return err
	}
	var fds []int
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		// The file is kept open by the caller.
		if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			return err
		}
	}
	n, _, err := c.WriteMsgUnix(line, unix.UnixRights(fds...), nil)
	if err == nil && n < len(line) {
		_, err = c.Write(line[n:])
	}
	return err
}

// Receive takes the next message. The descriptors that came with it are the
// caller's to close. io.EOF: the other side has ended.
func (c *Conn) Receive(v any) ([]*os.File, error) {
	for {
		if end := bytes.IndexByte(c.in, '\n'); end >= 0 {
			line := c.in[:end]
			c.in = c.in[end+1:]
			files := c.files
			c.files = nil
			if err := json.Unmarshal(line, v); err != nil {
				return nil, errors.Join(fmt.Errorf("a message is not understood: %w", err), closeAll(files))
			}
			return files, nil
		}
		if len(c.in) >= MaxLine {
			return nil, fmt.Errorf("a message is longer than %d bytes", MaxLine)
		}
		buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*maxFiles))
		n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
		if files, ferr := Files(oob[:oobn]); ferr != nil {
			return nil, errors.Join(ferr, closeAll(files))
		} else if c.files = append(c.files, files...); len(c.files) > maxFiles {
			err = errors.Join(fmt.Errorf("more than %d descriptors came", maxFiles), closeAll(c.files))
			c.files = nil
			return nil, err
		}
		c.in = append(c.in, buf[:n]...)
		if err == nil && n == 0 {
			err = io.EOF
		}
		if err != nil {
			err = errors.Join(err, closeAll(c.files))
			c.files = nil
			return nil, err
		}
	}
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

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Files are the descriptors in control messages.
func Files(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}
