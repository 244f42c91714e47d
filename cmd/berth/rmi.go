package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
)

func newRmiCommand(c *cli) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rmi IMAGE...",
		Short: "Remove images",
		Long: `Remove images, by a name, an ID or the beginning of one: with it go all names of
the image. An image that a container uses is kept, unless --force.`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: c.completeImages(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(func(cl *client.Client) error {
				set, err := cl.Set(cmd.Context())
				if err != nil {
					return err
				}
				var errs []error
				for _, ref := range args {
					img, err := cl.Image(cmd.Context(), ref)
					if err == nil && !force {
						err = unused(set, img)
					}
					if err == nil {
						_, err = cl.Images.RemoveImage(cmd.Context(), &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: img.Id}})
					}
					if err != nil {
						errs = append(errs, fmt.Errorf("remove %s: %w", ref, err))
						continue
					}
					fmt.Fprintln(cmd.OutOrStdout(), img.Id)
				}
				return errors.Join(errs...)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also images in use; their containers run on")
	return cmd
}

func unused(set *client.Set, img *runtime.Image) error {
	for _, ctr := range set.Containers {
		if ctr.ImageId == img.Id || ctr.ImageRef == img.Id || ctr.GetImage().GetImage() == img.Id {
			return fmt.Errorf("container %s uses it: remove that first, or use --force", set.ContainerName(ctr))
		}
	}
	return nil
}
