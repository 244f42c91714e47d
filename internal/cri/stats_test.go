package cri

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/container"
	"berth/internal/engine"
	"berth/internal/host"
	"berth/internal/record"
	"berth/internal/stats"
)

// statsServer is a server of which only the statistics work, with a pod of
// three running containers: of "vanishing" no walk of the layer succeeds, and
// "gone" has been removed, but for its record.
func statsServer(t *testing.T) *Server {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	dir := t.TempDir()
	store, err := record.Open(t.Context(), dir+"/records.db", log)
	if err != nil {
		t.Fatal(err)
	}
	kit, err := engine.StartEmbedded(context.Background(), engine.Options{
		Root: dir + "/root", State: dir + "/state", Socket: dir + "/state/c.sock", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	cgroups, err := host.NewCgroups("cgroupfs")
	if err != nil {
		t.Fatal(err)
	}
	containers := container.New(container.Options{Store: store, Engine: kit, Log: log})
	t.Cleanup(func() {
		for _, close := range []func() error{containers.Close, cgroups.Close, kit.Close, store.Close} {
			if err := close(); err != nil {
				t.Error(err)
			}
		}
	})
	box := &record.Sandbox{ID: "pod", State: record.SandboxReady, Config: goodSandbox(), CgroupParent: "/berth-test-nothing/pod"}
	if err := store.Sandboxes.Put(box); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"well", "vanishing", "gone"} {
		c := &record.Container{
			ID: id, SandboxID: "pod", State: record.ContainerRunning, Snapshotter: "overlayfs", Cgroup: "/berth-test-nothing/pod/" + id,
			Config: &runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: id}},
		}
		if err := store.Containers.Put(c); err != nil {
			t.Fatal(err)
		}
		if id != "gone" {
			makeLayer(t, kit, id)
		}
	}
	return New(Options{Store: store, Containers: containers, Stats: stats.New(cgroups, func(string) bool { return true }), Cgroups: cgroups, Log: log, FSPath: "/fs"})
}

func makeLayer(t *testing.T, kit *engine.Engine, id string) {
	t.Helper()
	layers := kit.Client().SnapshotService("overlayfs")
	mounts, err := layers.Prepare(kit.Context(t.Context()), id, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := layers.Remove(kit.Context(context.Background()), id); err != nil {
			t.Error(err)
		}
	})
	if id == "vanishing" {
		if err := os.Remove(mounts[0].Source); err != nil {
			t.Fatal(err)
		}
	}
}

// figures tells of each container whether its layer's size is known.
func figures(list []*runtime.ContainerStats) string {
	var all []string
	for _, c := range list {
		text := c.Attributes.Id
		if c.WritableLayer != nil {
			text += "+layer"
		}
		all = append(all, text)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func TestOneContainerHidesNoOther(t *testing.T) {
	s := statsServer(t)
	const want = "vanishing well+layer"
	list, err := s.ListContainerStats(t.Context(), &runtime.ListContainerStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, figures(list.Stats)); diff != "" {
		t.Error(diff)
	}
	pods, err := s.ListPodSandboxStats(t.Context(), &runtime.ListPodSandboxStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(pods.Stats) != 1 {
		t.Fatalf("%d pods", len(pods.Stats))
	}
	if diff := cmp.Diff(want, figures(pods.Stats[0].Linux.Containers)); diff != "" {
		t.Error(diff)
	}
	one, err := s.ContainerStats(t.Context(), &runtime.ContainerStatsRequest{ContainerId: "vanishing"})
	if err != nil || one.Stats.WritableLayer != nil {
		t.Errorf("%v, %v", one, err)
	}
	if _, err := s.ContainerStats(t.Context(), &runtime.ContainerStatsRequest{ContainerId: "gone"}); !errdefs.IsNotFound(err) {
		t.Errorf("err = %v", err)
	}
}
