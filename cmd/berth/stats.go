package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
)

func newStatsCommand(c *cli) *cobra.Command {
	var (
		out           output
		watch, single bool
		interval      time.Duration
	)
	cmd := &cobra.Command{
		Use:   "stats [POD|CONTAINER]...",
		Short: "Show what containers use of CPU, memory and disk",
		Long: `Show what running containers use: CPU in percent of one core, memory as the
kubelet counts it (the working set), and the writable layer on disk. On a
terminal the table is shown anew each interval until Ctrl-C; elsewhere, or with
--no-stream, once.`,
		ValidArgsFunction: c.completeContainers(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			w := cmd.OutOrStdout()
			if !cmd.Flags().Changed("watch") {
				watch = isTerminal(w) && out.format == "table"
			}
			if interval < 100*time.Millisecond {
				return fmt.Errorf("--interval %s: want at least 100ms", interval)
			}
			return c.with(func(cl *client.Client) error {
				s := &sampler{client: cl, refs: args, before: map[string]*runtime.CpuUsage{}}
				if watch && !single {
					return s.watch(cmd.Context(), w, interval)
				}
				// Of the first sample the use of CPU is not known yet, unless the
				// server keeps one.
				resp, rows, err := s.sample(cmd.Context())
				if err != nil {
					return err
				}
				if out.format == "table" && s.needsSecond(resp) {
					if err := sleep(cmd.Context(), time.Second); err != nil {
						return err
					}
					if resp, rows, err = s.sample(cmd.Context()); err != nil {
						return err
					}
				}
				return out.message(w, resp, func() *table { return rows })
			})
		},
	}
	out.flag(cmd, listFormats...)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it anew each interval (default on a terminal)")
	cmd.Flags().BoolVar(&single, "no-stream", false, "show it once")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "time between two samples")
	return cmd
}

// A sampler takes samples and remembers the CPU times of the one before.
type sampler struct {
	client *client.Client
	refs   []string
	before map[string]*runtime.CpuUsage
}

// sample is the statistics of the chosen containers, as a message and a table.
func (s *sampler) sample(ctx context.Context) (*runtime.ListContainerStatsResponse, *table, error) {
	set, err := s.client.Set(ctx)
	if err != nil {
		return nil, nil, err
	}
	chosen, err := chosenContainers(set, s.refs)
	if err != nil {
		return nil, nil, err
	}
	resp, err := s.client.Runtime.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{})
	if err != nil {
		return nil, nil, err
	}
	names := map[string]string{}
	for _, ctr := range set.Containers {
		names[ctr.Id] = set.ContainerName(ctr)
	}
	resp.Stats = slices.DeleteFunc(resp.Stats, func(st *runtime.ContainerStats) bool {
		return chosen != nil && !chosen[st.GetAttributes().GetId()]
	})
	slices.SortFunc(resp.Stats, func(a, b *runtime.ContainerStats) int {
		return cmp.Compare(names[a.GetAttributes().GetId()], names[b.GetAttributes().GetId()])
	})
	t := newTable("CONTAINER ID", "NAME", "CPU", "MEMORY", "LIMIT", "DISK")
	now := map[string]*runtime.CpuUsage{}
	for _, st := range resp.Stats {
		id := st.GetAttributes().GetId()
		now[id] = st.Cpu
		used, left := st.GetMemory().GetWorkingSetBytes(), st.GetMemory().GetAvailableBytes()
		limit := "-"
		if left != nil { // 0 at the limit
			limit = binarySize(used.GetValue() + left.GetValue())
		}
		t.row(shortID(id), cmp.Or(names[id], st.GetAttributes().GetMetadata().GetName()), cpuPercent(s.before[id], st.Cpu),
			binarySize(used.GetValue()), limit, size(st.GetWritableLayer().GetUsedBytes().GetValue()))
	}
	s.before = now
	return resp, t, nil
}

// chosenContainers are the IDs that refs mean, a pod being all of its; nil is
// every container.
func chosenContainers(set *client.Set, refs []string) (map[string]bool, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	chosen := map[string]bool{}
	for _, ref := range refs {
		o, err := findObject(set, ref)
		if err != nil {
			return nil, err
		}
		if o.container != nil {
			chosen[o.container.Id] = true
			continue
		}
		for _, ctr := range set.Of(o.pod) {
			chosen[ctr.Id] = true
		}
	}
	return chosen, nil
}

// cpuPercent is the use of CPU between two samples, else what the server says,
// in percent of one core.
func cpuPercent(before, now *runtime.CpuUsage) string {
	if before != nil && now.GetTimestamp() > before.Timestamp && now.GetUsageCoreNanoSeconds() != nil {
		used := float64(now.GetUsageCoreNanoSeconds().Value) - float64(before.GetUsageCoreNanoSeconds().GetValue())
		return fmt.Sprintf("%.1f%%", max(used, 0)/float64(now.Timestamp-before.Timestamp)*100)
	}
	if cores := now.GetUsageNanoCores(); cores != nil {
		return fmt.Sprintf("%.1f%%", float64(cores.Value)/1e9*100)
	}
	return "-"
}

// needsSecond tells whether the server does not know the use of CPU itself.
func (s *sampler) needsSecond(resp *runtime.ListContainerStatsResponse) bool {
	return slices.ContainsFunc(resp.Stats, func(st *runtime.ContainerStats) bool { return st.GetCpu().GetUsageNanoCores() == nil })
}

// watch shows sample after sample in the same place.
func (s *sampler) watch(ctx context.Context, w io.Writer, interval time.Duration) error {
	clear := ""
	if isTerminal(w) {
		clear = "\x1b[H\x1b[2J"
	}
	for {
		_, t, err := s.sample(ctx)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(w, clear); err != nil {
			return err
		}
		if err := t.write(w); err != nil {
			return err
		}
		if err := sleep(ctx, interval); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
