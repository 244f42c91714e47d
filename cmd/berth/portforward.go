package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"berth/internal/client"
)

func newPortForwardCommand(c *cli) *cobra.Command {
	var listen []string
	cmd := &cobra.Command{
		Use:   "port-forward POD [LOCAL:]REMOTE...",
		Short: "Carry connections to local ports to ports of a pod",
		Long: `Listen on local ports and carry each connection to a port of a pod, until Ctrl-C.
Without a local port it is the same as the pod's; 0 takes a free one.`,
		Example: `  berth port-forward web 8080:80
  berth port-forward --listen 0.0.0.0 web 80 0:443`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: c.completePods(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var ports []forwardedPort
			for _, arg := range args[1:] {
				p, err := parsePort(arg)
				if err != nil {
					return err
				}
				ports = append(ports, p)
			}
			return c.with(func(cl *client.Client) error {
				set, err := cl.Set(cmd.Context())
				if err != nil {
					return err
				}
				pod, err := client.FindPod(set.Pods, args[0])
				if err != nil {
					return err
				}
				f, err := cl.Forward(cmd.Context(), pod.Id)
				if err != nil {
					return err
				}
				return forward(cmd, f, listen, ports)
			})
		},
	}
	cmd.Flags().StringSliceVar(&listen, "listen", []string{"127.0.0.1"}, "addresses to listen on")
	return cmd
}

// A forwardedPort is LOCAL:REMOTE.
type forwardedPort struct{ local, remote uint16 }

func parsePort(s string) (forwardedPort, error) {
	local, remote, both := strings.Cut(s, ":")
	if !both {
		remote = local
	}
	l, lErr := strconv.ParseUint(local, 10, 16)
	r, rErr := strconv.ParseUint(remote, 10, 16)
	if lErr != nil || rErr != nil || r == 0 {
		return forwardedPort{}, fmt.Errorf("port %q: want REMOTE or LOCAL:REMOTE, each at most 65535", s)
	}
	return forwardedPort{uint16(l), uint16(r)}, nil
}

// forward listens on all before it carries the first connection, so that a port
// that is taken is an error at once.
func forward(cmd *cobra.Command, f *client.Forwarder, addresses []string, ports []forwardedPort) (err error) {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	defer func() { err = errors.Join(err, f.Close()) }()
	type listener struct {
		net.Listener
		remote uint16
	}
	var listeners []listener
	closeAll := func() {
		for _, l := range listeners {
			l.Close() // nothing is lost with a listener
		}
	}
	defer closeAll()
	for _, p := range ports {
		for _, address := range addresses {
			l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(int(p.local))))
			if err != nil {
				return err
			}
			listeners = append(listeners, listener{l, p.remote})
			fmt.Fprintf(cmd.OutOrStdout(), "%s -> %d\n", l.Addr(), p.remote)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	// Ends the listeners, and with the line all connections.
	stop := context.AfterFunc(ctx, func() {
		closeAll()
		f.Close() // again when this function returns, with its error
	})
	defer stop()
	for _, l := range listeners {
		group.Go(func() error {
			return f.Serve(ctx, l, l.remote, func(err error) { fmt.Fprintln(cmd.ErrOrStderr(), "berth:", err) })
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}
