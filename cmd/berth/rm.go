package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
	"berth/internal/podrun"
)

func newRmCommand(c *cli) *cobra.Command {
	var (
		force, all bool
		places     rootFlags
	)
	cmd := &cobra.Command{
		Use:   "rm POD|CONTAINER...",
		Short: "Remove pods or containers",
		Long: `Remove stopped pods, with their containers, or single containers. Volumes and
logs of a pod that berth run made are removed with it; give the --run-root and
--log-root that it was run with.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return errors.New("name what to remove, or use --all for every pod")
			}
			return nil
		},
		ValidArgsFunction: c.completeContainers(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			roots, err := places.roots()
			if err != nil {
				return err
			}
			return c.with(func(cl *client.Client) error {
				if all {
					set, err := cl.Set(cmd.Context())
					if err != nil {
						return err
					}
					for _, p := range set.Pods {
						args = append(args, p.Id)
					}
				}
				return eachObject(cmd, cl, args, func(ctx context.Context, set *client.Set, o object) error {
					if o.pod != nil {
						return removePod(ctx, cl, roots, o.pod, force)
					}
					return removeContainer(ctx, cl, set, o.container, force)
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill what runs first, without a grace period")
	cmd.Flags().BoolVar(&all, "all", false, "every pod")
	places.add(cmd)
	return cmd
}

func removePod(ctx context.Context, cl *client.Client, roots podrun.Roots, pod *runtime.PodSandbox, force bool) error {
	if pod.State == runtime.PodSandboxState_SANDBOX_READY {
		if !force {
			return fmt.Errorf("pod %s has not been stopped: `berth stop` it first, or use --force", client.PodName(pod.Metadata))
		}
		if err := podrun.Stop(ctx, cl, pod, new(noGrace)); err != nil {
			return err
		}
	}
	return podrun.Remove(ctx, cl, roots, pod)
}

func removeContainer(ctx context.Context, cl *client.Client, set *client.Set, ctr *runtime.Container, force bool) error {
	if ctr.State == runtime.ContainerState_CONTAINER_RUNNING {
		if !force {
			return fmt.Errorf("container %s runs: `berth stop` it first, or use --force", set.ContainerName(ctr))
		}
		if _, err := cl.Runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: ctr.Id}); err != nil {
			return err
		}
	}
	_, err := cl.Runtime.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: ctr.Id})
	return err
}
