package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/testing/protocmp"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// A metricSet is the metrics of one pod or container, checked against their
// descriptors, by name and labels of their own: "container_fs_reads_total device=/dev/vda".
type metricSet map[string]uint64

func setOf(t *testing.T, descriptors map[string]*cri.MetricDescriptor, want map[string]string, metrics []*cri.Metric) metricSet {
	t.Helper()
	set := metricSet{}
	for _, m := range metrics {
		d := descriptors[m.Name]
		if d == nil || len(d.LabelKeys) != len(m.LabelValues) {
			t.Errorf("a kubelet drops %v, described as %v", m, d)
			continue
		}
		key := m.Name
		for i, label := range d.LabelKeys {
			if have, base := want[label]; !base {
				key += fmt.Sprintf(" %s=%s", label, m.LabelValues[i])
			} else if have != m.LabelValues[i] {
				t.Errorf("%s: label %s is %q, want %q", m.Name, label, m.LabelValues[i], have)
			}
		}
		if _, twice := set[key]; twice {
			t.Errorf("%s is there twice, which Prometheus refuses", key)
		}
		set[key] = m.Value.GetValue()
	}
	return set
}

// of is the metric of that name, with whatever labels.
func (s metricSet) of(name string) (values []uint64) {
	for key, v := range s {
		if n, _, _ := strings.Cut(key, " "); n == name {
			values = append(values, v)
		}
	}
	return values
}

func (s metricSet) wantAbove(t *testing.T, least uint64, names ...string) {
	t.Helper()
	for _, name := range names {
		values := s.of(name)
		if len(values) == 0 || slices.Max(values) <= least {
			t.Errorf("%s: %v, want more than %d", name, values, least)
		}
	}
}

func descriptors(t *testing.T, c *testkit.Client) map[string]*cri.MetricDescriptor {
	t.Helper()
	resp, err := c.ListMetricDescriptors(t.Context(), &cri.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*cri.MetricDescriptor{}
	for _, d := range resp.Descriptors {
		byName[d.Name] = d
	}
	if len(byName) != len(resp.Descriptors) || len(byName) < 60 {
		t.Errorf("%d descriptors, %d names", len(resp.Descriptors), len(byName))
	}
	return byName
}

// podMetrics are those of one pod in the list.
func podMetrics(t *testing.T, c *testkit.Client, id string) *cri.PodSandboxMetrics {
	t.Helper()
	resp, err := c.ListPodSandboxMetrics(t.Context(), &cri.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(resp.PodMetrics, func(m *cri.PodSandboxMetrics) bool { return m.PodSandboxId == id })
	if i < 0 {
		return nil
	}
	return resp.PodMetrics[i]
}

func TestPodSandboxMetrics(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		byName := descriptors(t, c)
		p := c.Pod(t)
		const work = "dd if=/dev/zero of=/file bs=1k count=2000 2>/dev/null; ping -c 1 -W 1 10.255.255.254 >/dev/null 2>&1; while :; do :; done"
		busy := p.Container(t, busybox, []string{"sh", "-c", work}, func(c *cri.ContainerConfig) {
			c.Image.UserSpecifiedImage = "as/asked:for"
			c.Linux.Resources = &cri.LinuxContainerResources{CpuQuota: 50000, CpuPeriod: 100000, CpuShares: 512, MemoryLimitInBytes: 64 << 20}
		})
		ended := p.Container(t, busybox, []string{"true"})
		ended.Exited(t)

		var pod, container metricSet
		testkit.Until(t, 60*time.Second, func(context.Context) string {
			m := podMetrics(t, c, p.ID)
			if m == nil || len(m.ContainerMetrics) != 1 || m.ContainerMetrics[0].ContainerId != busy.ID {
				return fmt.Sprintf("want one running container: %v", m)
			}
			meta := p.Config.Metadata
			pod = setOf(t, byName, map[string]string{"id": podCgroupOf(m.Metrics), "name": p.ID, "image": "", "pod": meta.Name, "namespace": meta.Namespace, "container": ""}, m.Metrics)
			container = setOf(t, byName, map[string]string{
				"id": podCgroupOf(m.ContainerMetrics[0].Metrics), "name": busy.ID, "image": "as/asked:for", "pod": meta.Name, "namespace": meta.Namespace, "container": busy.Config.Metadata.Name,
			}, m.ContainerMetrics[0].Metrics)
			if used := container.of("container_cpu_usage_seconds_total"); len(used) != 1 || used[0] == 0 {
				return "it has not run for a second yet"
			}
			if used := container.of("container_fs_usage_bytes"); len(used) != 1 || used[0] < 2_000_000 {
				return fmt.Sprintf("the layer's size is not known yet: %v", used)
			}
			return ""
		})
		container.wantAbove(t, 0,
			"container_memory_usage_bytes", "container_memory_working_set_bytes", "container_memory_rss", "container_memory_failures_total",
			"container_processes", "container_file_descriptors", "container_threads", "container_ulimits_soft", "container_last_seen",
			"container_start_time_seconds", "container_creation_time_seconds", "container_fs_limit_bytes", "container_fs_inodes_total",
			"container_cpu_cfs_periods_total")
		for name, want := range map[string]uint64{
			"container_spec_cpu_quota": 50000, "container_spec_cpu_period": 100000, "container_spec_cpu_shares": 512,
			"container_spec_memory_limit_bytes": 64 << 20, "container_oom_events_total": 0, "container_sockets": 0, "container_processes": 1,
		} {
			if diff := cmp.Diff([]uint64{want}, container.of(name)); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
		pod.wantAbove(t, 0, "container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_processes")
		for _, name := range []string{"receive_bytes", "transmit_bytes", "receive_packets", "transmit_packets", "receive_errors", "transmit_errors", "receive_packets_dropped", "transmit_packets_dropped"} {
			if _, ok := pod["container_network_"+name+"_total interface=eth0"]; !ok {
				t.Errorf("no %s of eth0", name)
			}
		}
		pod.wantAbove(t, 0, "container_network_transmit_packets_total")

		if err := p.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if m := podMetrics(t, c, p.ID); m != nil {
			t.Errorf("a pod that is stopped: %v", m)
		}
	})
}

// podCgroupOf is the label id, a cgroup, which the test does not know.
func podCgroupOf(metrics []*cri.Metric) string {
	if len(metrics) == 0 || !strings.HasPrefix(metrics[0].LabelValues[0], "/") {
		return "a cgroup"
	}
	return metrics[0].LabelValues[0]
}

// A pod in the host's network does not count the host's traffic as its own.
func TestMetricsOnTheHostsNetwork(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t, func(p *cri.PodSandboxConfig) {
			p.Linux.SecurityContext = &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}}
		})
		m := podMetrics(t, c, p.ID)
		if m == nil {
			t.Fatal("no metrics")
		}
		for _, one := range m.Metrics {
			if strings.HasPrefix(one.Name, "container_network") {
				t.Errorf("%v", one)
			}
		}
	})
}

// everything collects a streamed list.
func everything[M, E any](t *testing.T, stream grpc.ServerStreamingClient[M], err error, entries func(*M) []E) []E {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var all []E
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, entries(part)...)
	}
}

// A streamed list has what the list has.
func TestStreamedLists(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		label := map[string]string{"streamed": testkit.Name("streamed")}
		var boxes []string
		for range 3 {
			p := c.Pod(t, func(p *cri.PodSandboxConfig) { p.Labels = label })
			p.Container(t, busybox, []string{"sleep", "1000"}, func(c *cri.ContainerConfig) { c.Labels = label })
			boxes = append(boxes, p.ID)
		}
		ctx := t.Context()

		containers, err := c.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{LabelSelector: label}})
		if err != nil || len(containers.Containers) != 3 {
			t.Fatalf("%v, %v", containers, err)
		}
		s1, err := c.StreamContainers(ctx, &cri.StreamContainersRequest{Filter: &cri.ContainerFilter{LabelSelector: label}})
		got := everything(t, s1, err, (*cri.StreamContainersResponse).GetContainers)
		if diff := cmp.Diff(containers.Containers, got, protocmp.Transform()); diff != "" {
			t.Error(diff)
		}

		pods, err := c.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: label}})
		if err != nil || len(pods.Items) != 3 {
			t.Fatalf("%v, %v", pods, err)
		}
		s2, err := c.StreamPodSandboxes(ctx, &cri.StreamPodSandboxesRequest{Filter: &cri.PodSandboxFilter{LabelSelector: label}})
		if diff := cmp.Diff(pods.Items, everything(t, s2, err, (*cri.StreamPodSandboxesResponse).GetPodSandboxes), protocmp.Transform()); diff != "" {
			t.Error(diff)
		}

		s3, err := c.StreamContainerStats(ctx, &cri.StreamContainerStatsRequest{Filter: &cri.ContainerStatsFilter{LabelSelector: label}})
		if stats := everything(t, s3, err, (*cri.StreamContainerStatsResponse).GetContainerStats); len(stats) != 3 || stats[0].Cpu.GetUsageCoreNanoSeconds() == nil {
			t.Errorf("%v", stats)
		}
		s4, err := c.StreamPodSandboxStats(ctx, &cri.StreamPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{LabelSelector: label}})
		if stats := everything(t, s4, err, (*cri.StreamPodSandboxStatsResponse).GetPodSandboxStats); len(stats) != 3 || stats[0].Linux.GetProcess().GetProcessCount().GetValue() != 1 {
			t.Errorf("%v", stats)
		}
		s5, err := c.StreamPodSandboxMetrics(ctx, &cri.StreamPodSandboxMetricsRequest{})
		metrics := everything(t, s5, err, (*cri.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics)
		for _, id := range boxes {
			i := slices.IndexFunc(metrics, func(m *cri.PodSandboxMetrics) bool { return m.PodSandboxId == id })
			if i < 0 || len(metrics[i].Metrics) == 0 || len(metrics[i].ContainerMetrics) != 1 {
				t.Errorf("metrics of %s: %v", id, metrics)
			}
		}

		images := cri.NewImageServiceClient(c.Conn())
		s6, err := images.StreamImages(ctx, &cri.StreamImagesRequest{Filter: &cri.ImageFilter{Image: &cri.ImageSpec{Image: busybox}}})
		if list := everything(t, s6, err, (*cri.StreamImagesResponse).GetImages); len(list) != 1 || list[0].Id != busyboxID {
			t.Errorf("images: %v", list)
		}
	})
}
