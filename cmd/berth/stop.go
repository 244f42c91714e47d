package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
	"berth/internal/podrun"
)

func newStopCommand(c *cli) *cobra.Command {
	var seconds int
	cmd := &cobra.Command{
		Use:   "stop POD|CONTAINER...",
		Short: "Stop pods or containers",
		Long: `Stop pods, with all their containers, or single containers: SIGTERM (or the
image's signal), and SIGKILL to what is left after the grace period.`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: c.completeContainers(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			var grace *time.Duration
			if cmd.Flags().Changed("time") {
				if seconds < 0 {
					return fmt.Errorf("--time %d: want seconds, 0 to kill at once", seconds)
				}
				grace = new(time.Duration(seconds) * time.Second)
			}
			return c.with(func(cl *client.Client) error {
				return eachObject(cmd, cl, args, func(ctx context.Context, set *client.Set, o object) error {
					if o.pod != nil {
						return podrun.Stop(ctx, cl, o.pod, grace)
					}
					_, err := cl.Runtime.StopContainer(ctx, &runtime.StopContainerRequest{
						ContainerId: o.container.Id, Timeout: int64(podrun.Grace(o.container, grace) / time.Second),
					})
					return err
				})
			})
		},
	}
	cmd.Flags().IntVarP(&seconds, "time", "t", 0, "seconds between SIGTERM and SIGKILL (default: what the pod asks for)")
	return cmd
}

// noGrace kills at once.
const noGrace = time.Duration(0)

// An object is a pod or a container.
type object struct {
	pod       *runtime.PodSandbox
	container *runtime.Container
}

// findObject resolves to a pod, else to a container.
func findObject(set *client.Set, ref string) (object, error) {
	pod, err := client.FindPod(set.Pods, ref)
	if err == nil {
		return object{pod: pod}, nil
	}
	if !errdefs.IsNotFound(err) {
		return object{}, err
	}
	ctr, err := set.FindContainer(ref, false)
	return object{container: ctr}, err
}

// eachObject does something to each pod or container and prints what the user
// called it. It goes on after a failure and returns them all.
func eachObject(cmd *cobra.Command, cl *client.Client, refs []string, do func(context.Context, *client.Set, object) error) error {
	set, err := cl.Set(cmd.Context())
	if err != nil {
		return err
	}
	var errs []error
	for _, ref := range refs {
		o, err := findObject(set, ref)
		if err == nil {
			err = do(cmd.Context(), set, o)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(cmd.OutOrStdout(), ref)
	}
	return errors.Join(errs...)
}
