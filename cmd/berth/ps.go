package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
)

func newPsCommand(c *cli) *cobra.Command {
	var (
		out   output
		all   bool
		quiet bool
		wide  bool
	)
	cmd := &cobra.Command{
		Use:               "ps [POD]",
		Short:             "List containers, of one pod or of all",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.completePods(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(func(cl *client.Client) error {
				set, err := cl.Set(cmd.Context())
				if err != nil {
					return err
				}
				keep := func(*runtime.Container) bool { return true }
				if len(args) == 1 {
					pod, err := client.FindPod(set.Pods, args[0])
					if err != nil {
						return err
					}
					keep = func(ctr *runtime.Container) bool { return ctr.PodSandboxId == pod.Id }
				}
				set.Containers = slices.DeleteFunc(set.Containers, func(ctr *runtime.Container) bool {
					return !keep(ctr) || !all && ctr.State != runtime.ContainerState_CONTAINER_RUNNING
				})
				if quiet {
					for _, ctr := range set.Containers {
						fmt.Fprintln(cmd.OutOrStdout(), ctr.Id)
					}
					return nil
				}
				return out.message(cmd.OutOrStdout(), &runtime.ListContainersResponse{Containers: set.Containers},
					func() *table { return containerTable(set, time.Now(), wide) })
			})
		},
	}
	out.flag(cmd, listFormats...)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that do not run")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs alone")
	cmd.Flags().BoolVar(&wide, "no-trunc", false, "print whole IDs")
	return cmd
}

func containerTable(set *client.Set, now time.Time, wide bool) *table {
	containers := slices.Clone(set.Containers)
	slices.SortStableFunc(containers, func(a, b *runtime.Container) int { return cmp.Compare(b.CreatedAt, a.CreatedAt) })
	t := newTable("CONTAINER ID", "NAME", "IMAGE", "STATE", "ATTEMPT", "AGE")
	for _, ctr := range containers {
		image := cmp.Or(ctr.GetImage().GetUserSpecifiedImage(), ctr.GetImage().GetImage(), ctr.ImageRef)
		if strings.HasPrefix(image, "sha256:") {
			image = tableID(image, wide)
		}
		t.row(tableID(ctr.Id, wide), set.ContainerName(ctr), orDash(image), containerState(ctr.State), fmt.Sprint(ctr.GetMetadata().GetAttempt()), age(ctr.CreatedAt, now))
	}
	return t
}

// containerState is "Running" for CONTAINER_RUNNING.
func containerState(s runtime.ContainerState) string {
	name := strings.TrimPrefix(s.String(), "CONTAINER_")
	return name[:1] + strings.ToLower(name[1:])
}
