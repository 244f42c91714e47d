package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
)

// The keys that detach from a container's terminal, as docker has them.
const (
	detachFirst  = 'p' & 0x1f
	detachSecond = 'q' & 0x1f
)

// errDetached ends a stream whose user detached.
var errDetached = errors.New("detached")

func newAttachCommand(c *cli) *cobra.Command {
	var flags streamFlags
	cmd := &cobra.Command{
		Use:   "attach CONTAINER|POD",
		Short: "Connect to the output, and with -i the input, of a running container",
		Long: `Connect to a running container's output and, with -i, its input. A container
with a terminal has this one while attached; Ctrl-P Ctrl-Q detaches and leaves
it running.`,
		Example:           "  berth attach -i web",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeContainers(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(func(cl *client.Client) error {
				ctr, err := findContainer(cmd.Context(), cl, args[0], flags.container, true)
				if err != nil {
					return err
				}
				tty := flags.tty
				if !cmd.Flags().Changed("tty") {
					if tty, err = hasTTY(cmd, cl, ctr.Id); err != nil {
						return err
					}
				}
				req := client.StreamRequest{ContainerID: ctr.Id, TTY: tty, Transport: flags.transport}
				return c.attach(cmd, cl, req, flags.stdin)
			})
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVarP(&flags.tty, "tty", "t", false, "treat the container as one with a terminal (default: as it was made)")
	return cmd
}

// attach connects until the container ends, or the user detaches.
func (c *cli) attach(cmd *cobra.Command, cl *client.Client, req client.StreamRequest, stdin bool) error {
	ctx, cancel := context.WithCancelCause(cmd.Context())
	defer cancel(nil)
	ended := make(chan struct{})
	defer close(ended)
	if stdin {
		req.Stdin = c.in
	}
	if stdin && req.TTY {
		req.Stdin = &detachReader{r: c.in, detach: func() {
			cancel(errDetached)
			// The end of stdin would reach the container.
			<-ended
		}}
	}
	err := c.stream(ctx, cmd, cl, req)
	if errors.Is(context.Cause(ctx), errDetached) {
		fmt.Fprintln(cmd.ErrOrStderr(), "\r\ndetached; the container runs on")
		return nil
	}
	return err
}

// hasTTY asks whether the container was created with a terminal. Servers tell
// in the verbose status alone, each in its way.
func hasTTY(cmd *cobra.Command, cl *client.Client, id string) (bool, error) {
	resp, err := cl.Runtime.ContainerStatus(cmd.Context(), &runtime.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return false, err
	}
	return ttyIn(resp.GetInfo()), nil
}

// A detachReader ends at Ctrl-P Ctrl-Q and says so. It holds back a Ctrl-P until
// the next key has come.
type detachReader struct {
	r      io.Reader
	detach func()

	held, detached bool
}

// Read implements io.Reader.
func (d *detachReader) Read(b []byte) (int, error) {
	if len(b) < 2 {
		return 0, io.ErrShortBuffer
	}
	if d.detached {
		d.detach()
		return 0, errDetached
	}
	for {
		n, err := d.r.Read(b[1:])
		if n == 0 && d.held && err != nil {
			d.held = false
			b[0] = detachFirst
			return 1, err
		}
		if n == 0 {
			return 0, err
		}
		keys := b[1 : 1+n]
		if d.held {
			b[0] = detachFirst
			keys = b[:1+n]
		}
		if i := bytes.Index(keys, []byte{detachFirst, detachSecond}); i >= 0 {
			d.detached = true
			if i == 0 {
				d.detach()
				return 0, errDetached
			}
			return copy(b, keys[:i]), nil // what was typed before goes first
		}
		if d.held = keys[len(keys)-1] == detachFirst; d.held {
			keys = keys[:len(keys)-1]
		}
		if len(keys) > 0 || err != nil {
			return copy(b, keys), err
		}
	}
}
