package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
)

func newPodsCommand(c *cli) *cobra.Command {
	var (
		out   output
		quiet bool
		wide  bool
		ready bool
	)
	cmd := &cobra.Command{
		Use:               "pods",
		Short:             "List pods",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(func(cl *client.Client) error {
				set, err := cl.Set(cmd.Context())
				if err != nil {
					return err
				}
				if ready {
					set.Pods = slices.DeleteFunc(set.Pods, func(p *runtime.PodSandbox) bool { return p.State != runtime.PodSandboxState_SANDBOX_READY })
				}
				if quiet {
					for _, p := range set.Pods {
						fmt.Fprintln(cmd.OutOrStdout(), p.Id)
					}
					return nil
				}
				return out.message(cmd.OutOrStdout(), &runtime.ListPodSandboxResponse{Items: set.Pods},
					func() *table { return podTable(set, time.Now(), wide) })
			})
		},
	}
	out.flag(cmd, listFormats...)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs alone")
	cmd.Flags().BoolVar(&wide, "no-trunc", false, "print whole IDs")
	cmd.Flags().BoolVar(&ready, "ready", false, "only pods that are ready")
	return cmd
}

func podTable(set *client.Set, now time.Time, wide bool) *table {
	pods := slices.Clone(set.Pods)
	slices.SortStableFunc(pods, func(a, b *runtime.PodSandbox) int { return cmp.Compare(b.CreatedAt, a.CreatedAt) })
	t := newTable("POD ID", "NAME", "STATE", "CONTAINERS", "ATTEMPT", "RUNTIME", "AGE")
	for _, p := range pods {
		running, all := 0, set.Of(p)
		for _, ctr := range all {
			if ctr.State == runtime.ContainerState_CONTAINER_RUNNING {
				running++
			}
		}
		t.row(tableID(p.Id, wide), client.PodName(p.Metadata), podState(p.State), fmt.Sprintf("%d/%d", running, len(all)),
			fmt.Sprint(p.GetMetadata().GetAttempt()), cmp.Or(p.RuntimeHandler, "(default)"), age(p.CreatedAt, now))
	}
	return t
}

func podState(s runtime.PodSandboxState) string {
	if s == runtime.PodSandboxState_SANDBOX_READY {
		return "Ready"
	}
	return "NotReady"
}

func tableID(id string, whole bool) string {
	if whole {
		return id
	}
	return shortID(id)
}
