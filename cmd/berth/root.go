package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth/internal/client"
)

// A cli is what the client commands share.
type cli struct {
	address string
	in      io.Reader
}

// Groups of commands, in the order in which help shows them.
const (
	groupPods   = "pods"
	groupImages = "images"
	groupDaemon = "daemon"
)

func newRootCommand(in io.Reader, out, errOut io.Writer) *cobra.Command {
	c := &cli{in: in}
	root := &cobra.Command{
		Use:   "berth",
		Short: "Pods and containers on one machine, for Kubernetes and by hand",
		Long: `berth gives Kubernetes its pods and containers on one Linux machine.

"berth serve" is the daemon, a CRI server. The other commands are its client:
they run, show and remove pods, containers and images. A pod is named by
namespace/name, by its name, or by its ID or the beginning of one; a container
by namespace/pod/container, pod/container, its name or its ID.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	root.PersistentFlags().StringVar(&c.address, "address", "",
		"socket of the daemon (default $BERTH_ADDRESS, $CONTAINER_RUNTIME_ENDPOINT, else "+client.DefaultAddress+")")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w (`%s --help` shows the flags)", err, cmd.CommandPath())
	})
	root.AddGroup(
		&cobra.Group{ID: groupPods, Title: "Pods and containers:"},
		&cobra.Group{ID: groupImages, Title: "Images:"},
		&cobra.Group{ID: groupDaemon, Title: "The daemon:"},
	)
	root.SetHelpCommandGroupID(groupDaemon)
	root.SetCompletionCommandGroupID(groupDaemon)
	add := func(group string, commands ...*cobra.Command) {
		for _, cmd := range commands {
			cmd.GroupID = group
			explainArgs(cmd)
			root.AddCommand(cmd)
		}
	}
	add(groupPods, newRunCommand(c), newPodsCommand(c), newPsCommand(c), newLogsCommand(c), newExecCommand(c), newAttachCommand(c),
		newPortForwardCommand(c), newStopCommand(c), newRmCommand(c), newInspectCommand(c), newStatsCommand(c), newEventsCommand(c))
	add(groupImages, newImagesCommand(c), newPullCommand(c), newLoadCommand(c), newRmiCommand(c))
	add(groupDaemon, newServeCommand(), newConfigCommand(), newDoctorCommand(c), newVersionCommand(c), newManualCommand())
	return root
}

// explainArgs has a command's complaint about its arguments say what it wants.
func explainArgs(cmd *cobra.Command) {
	check := cmd.Args
	if check == nil {
		return
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		if err == nil {
			return nil
		}
		return fmt.Errorf("%w (usage: %s)", err, cmd.UseLine())
	}
}

// connect makes the client of the chosen socket.
func (c *cli) connect() (*client.Client, error) { return client.New(client.Address(c.address)) }

// with connects, does, and closes.
func (c *cli) with(do func(*client.Client) error) error {
	cl, err := c.connect()
	if err != nil {
		return err
	}
	return errors.Join(do(cl), cl.Close())
}

// isCanceled tells whether an error is the user's Ctrl-C coming back.
func isCanceled(err error) bool {
	return errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled
}
