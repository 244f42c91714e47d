package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"berth/internal/client"
)

func newLogsCommand(c *cli) *cobra.Command {
	var (
		o         client.LogOptions
		container string
		tail      int64
		since     string
	)
	cmd := &cobra.Command{
		Use:   "logs CONTAINER|POD",
		Short: "Show the log of a container",
		Long: `Show what a container wrote: its stdout on stdout, its stderr on stderr. The log
of the newest attempt is read from its file, so this runs on the daemon's
machine.`,
		Example: `  berth logs -f web
  berth logs --tail 20 --since 10m default/web/nginx`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeContainers(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if tail < -1 {
				return fmt.Errorf("--tail %d: want a number of lines, or -1 for all", tail)
			}
			if tail >= 0 {
				o.Tail = &tail
			}
			var err error
			if o.Since, err = parseSince(since, time.Now()); err != nil {
				return err
			}
			return c.with(func(cl *client.Client) error {
				ctr, err := findContainer(cmd.Context(), cl, args[0], container, false)
				if err != nil {
					return err
				}
				return cl.Logs(cmd.Context(), ctr.Id, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
			})
		},
	}
	cmd.Flags().BoolVarP(&o.Follow, "follow", "f", false, "go on until the container has ended")
	cmd.Flags().BoolVarP(&o.Timestamps, "timestamps", "t", false, "show when each line was written")
	cmd.Flags().Int64Var(&tail, "tail", -1, "show this many of the last lines; -1 is all")
	cmd.Flags().StringVar(&since, "since", "", "leave out what is older: a duration such as 10m, or a time such as 2026-01-02T15:04:05Z")
	cmd.Flags().StringVarP(&container, "container", "c", "", "name of the container, where a pod is given")
	return cmd
}

// parseSince is a time, or a duration before now.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d.Abs()), nil
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("--since %q: want a duration such as 10m, or a time such as 2026-01-02T15:04:05Z", s)
}
