package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
)

// streamFlags are those of commands that connect to a container.
type streamFlags struct {
	stdin, tty bool
	container  string
	transport  string
}

func (f *streamFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&f.stdin, "stdin", "i", false, "pass stdin to it")
	cmd.Flags().StringVarP(&f.container, "container", "c", "", "name of the container, where a pod is given")
	cmd.Flags().StringVar(&f.transport, "transport", client.TransportAuto, "how to connect: auto, websocket or spdy")
}

func newExecCommand(c *cli) *cobra.Command {
	var flags streamFlags
	cmd := &cobra.Command{
		Use:   "exec CONTAINER|POD [--] COMMAND [ARG...]",
		Short: "Run a command in a container",
		Long: `Run a command in a running container. The exit code is the command's; 1 with a
message where it could not be run.`,
		Example: `  berth exec -it web sh
  berth exec default/web/nginx -- cat /etc/hostname`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: c.completeContainers(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			command := args[1:]
			if command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 {
				return errors.New("no command: berth exec CONTAINER COMMAND")
			}
			return c.with(func(cl *client.Client) error {
				ctr, err := findContainer(cmd.Context(), cl, args[0], flags.container, true)
				if err != nil {
					return err
				}
				if f, ok := c.in.(*os.File); ok && flags.stdin && flags.tty && !isTerminal(f) {
					// The command would wait for an end that a terminal does not pass on.
					flags.tty = false
					fmt.Fprintln(cmd.ErrOrStderr(), "stdin is no terminal: the command gets none either")
				}
				req := client.StreamRequest{ContainerID: ctr.Id, Command: command, TTY: flags.tty, Transport: flags.transport}
				if flags.stdin {
					req.Stdin = c.in
				}
				return c.stream(cmd.Context(), cmd, cl, req)
			})
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVarP(&flags.tty, "tty", "t", false, "give it a terminal")
	// Flags after the container are the command's.
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// findContainer resolves what the user typed, with the container's name apart
// or not.
func findContainer(ctx context.Context, cl *client.Client, ref, name string, running bool) (*runtime.Container, error) {
	set, err := cl.Set(ctx)
	if err != nil {
		return nil, err
	}
	if name != "" {
		return set.In(ref, name)
	}
	return set.FindContainer(ref, running)
}

// stream runs an exec or an attach with this program's outputs and terminal.
func (c *cli) stream(ctx context.Context, cmd *cobra.Command, cl *client.Client, req client.StreamRequest) error {
	req.Stdout, req.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
	if req.TTY {
		// What the terminal reads and shows is the container's from here on.
		t, err := openTerminal(c.in, req.Stdout, req.Stdin != nil)
		if err != nil {
			return err
		}
		defer t.close()
		req.Resize = t
	}
	err := cl.Stream(ctx, req)
	var code client.ExitCode
	switch {
	case errors.As(err, &code):
		return &exitError{code: int(code)}
	case errors.Is(err, syscall.EPIPE):
		return nil
	}
	return err
}
