package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// fromCRI is the feature gate that makes the kubelet ask the runtime alone.
const fromCRI = "PodAndContainerStatsFromCRI"

// A usage is a part of the kubelet's summary: a number that must not be zero.
type usage struct {
	UsageNanoCores, UsageCoreNanoSeconds     uint64
	UsageBytes, WorkingSetBytes, RSSBytes    uint64
	UsedBytes, CapacityBytes, AvailableBytes uint64
	InodesUsed, RxBytes, TxBytes             uint64
	ProcessCount                             uint64 `json:"process_count"`
	Name                                     string
}

type podStats struct {
	PodRef  struct{ Name, UID string }
	CPU     usage
	Memory  usage
	Network struct {
		usage
		Interfaces []usage
	}
	Volume     []usage
	Storage    usage `json:"ephemeral-storage"`
	Processes  usage `json:"process_stats"`
	Containers []struct {
		Name         string
		CPU, Memory  usage
		Rootfs, Logs usage
	}
}

type summary struct {
	Node struct {
		CPU, Memory usage
		Fs          usage
		Runtime     struct{ ImageFs, ContainerFs usage }
	}
	Pods []podStats
}

func (n *node) summary(ctx context.Context) (summary, error) {
	var s summary
	text, err := n.get(ctx, "/stats/summary")
	if err == nil {
		err = json.Unmarshal([]byte(text), &s)
	}
	return s, err
}

// A figure is a number with a name and the least that it must be.
type figure struct {
	name        string
	have, least uint64
}

func tooSmall(figures []figure) string {
	var small []string
	for _, f := range figures {
		if f.have < f.least {
			small = append(small, fmt.Sprintf("%s is %d, want at least %d", f.name, f.have, f.least))
		}
	}
	return strings.Join(small, "; ")
}

func TestSummary(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "busy")
		p.ready(t)
		n.until(t, soon, func(ctx context.Context) string {
			s, err := n.summary(ctx)
			if err != nil {
				return err.Error()
			}
			i := slices.IndexFunc(s.Pods, func(x podStats) bool { return x.PodRef.Name == p.name })
			if i < 0 {
				return "the pod is not in the summary"
			}
			return tooSmall(slices.Concat(podFigures(n, s.Pods[i]), []figure{
				{"node cpu", s.Node.CPU.UsageCoreNanoSeconds, 1}, {"node memory", s.Node.Memory.WorkingSetBytes, 1},
				{"node fs", s.Node.Fs.CapacityBytes, 1}, {"image fs", s.Node.Runtime.ImageFs.UsedBytes, 1 << 20},
				{"container fs", s.Node.Runtime.ContainerFs.CapacityBytes, 1},
			}))
		})
	})
}

// podFigures are what the pod "busy" must have used.
func podFigures(n *node, s podStats) []figure {
	figures := []figure{{"containers", uint64(len(s.Containers)), 1}, {"ephemeral storage", s.Storage.UsedBytes, 3 << 20}}
	// cAdvisor finds neither: it looks for a container that is the sandbox.
	if n.opts.gates[fromCRI] {
		figures = append(figures, figure{"received", s.Network.RxBytes, 1}, figure{"sent", s.Network.TxBytes, 1}, figure{"processes", s.Processes.ProcessCount, 1})
	}
	for _, c := range s.Containers {
		figures = append(figures,
			figure{c.Name + " cpu", c.CPU.UsageCoreNanoSeconds, 1e6}, figure{c.Name + " cpu rate", c.CPU.UsageNanoCores, 1},
			figure{c.Name + " memory", c.Memory.WorkingSetBytes, 4096}, figure{c.Name + " rss", c.Memory.RSSBytes, 4096},
			figure{c.Name + " rootfs", c.Rootfs.UsedBytes, 2 << 20}, figure{c.Name + " rootfs inodes", c.Rootfs.InodesUsed, 1},
			figure{c.Name + " logs", c.Logs.UsedBytes, 1})
	}
	for _, v := range s.Volume {
		if v.Name == "scratch" {
			figures = append(figures, figure{"volume", v.UsedBytes, 1 << 20})
		}
	}
	figures = append(figures, figure{"pod cpu", s.CPU.UsageCoreNanoSeconds, 1e6}, figure{"pod cpu rate", s.CPU.UsageNanoCores, 1},
		figure{"pod memory", s.Memory.WorkingSetBytes, 4096})
	return figures
}

func TestMetrics(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "busy")
		p.ready(t)
		label := fmt.Sprintf("pod=%q", p.name)
		for path, families := range map[string][]string{
			"/metrics/resource": {"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_start_time_seconds",
				"pod_cpu_usage_seconds_total", "pod_memory_working_set_bytes"},
			"/metrics/cadvisor": {"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_memory_rss",
				"container_processes", "container_file_descriptors", "container_spec_memory_limit_bytes", "container_start_time_seconds", "container_last_seen"},
		} {
			t.Run(strings.TrimPrefix(path, "/metrics/"), func(t *testing.T) {
				if path == "/metrics/cadvisor" && n.opts.gates[fromCRI] {
					families = append(families, "container_network_transmit_packets_total", "container_fs_limit_bytes", "container_threads")
				}
				n.until(t, soon, func(ctx context.Context) string {
					text, err := n.get(ctx, path)
					if err != nil {
						return err.Error()
					}
					return missing(text, label, families)
				})
			})
		}
	})
}

// missing are the families without a sample that has the label and is not
// zero.
func missing(text, label string, families []string) string {
	have := map[string]bool{}
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(line, "{")
		labels, value, _ := strings.Cut(rest, "} ")
		if ok && strings.Contains(labels, label) && !strings.HasPrefix(value, "0 ") && !strings.HasPrefix(value, "0\n") {
			have[name] = true
		}
	}
	var none []string
	for _, f := range families {
		if !have[f] {
			none = append(none, f)
		}
	}
	if len(none) > 0 {
		return "nothing of the pod in " + strings.Join(none, ", ")
	}
	return ""
}
