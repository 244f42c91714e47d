package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

func TestContainerEvents(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		stream, err := c.GetContainerEvents(ctx, &cri.GetEventsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Header(); err != nil { // the subscription is made
			t.Fatal(err)
		}
		p, err := c.RunPod(ctx, c.PodConfig(t.Name()))
		if err != nil {
			t.Fatal(err)
		}
		ctr := p.Container(t, busybox, []string{"true"}) // its end is not told before its start
		ctr.Exited(t)
		if err := ctr.Remove(ctx); err != nil {
			t.Fatal(err)
		}
		if err := p.Remove(ctx); err != nil {
			t.Fatal(err)
		}
		got := map[string][]string{}
		for {
			e, err := stream.Recv()
			if err != nil {
				t.Fatalf("after %v: %v", got, err)
			}
			if e.ContainerId != p.ID && e.ContainerId != ctr.ID {
				continue
			}
			got[e.ContainerId] = append(got[e.ContainerId], e.ContainerEventType.String())
			if e.PodSandboxStatus.GetMetadata().GetName() != p.Config.Metadata.Name || e.PodSandboxStatus.GetId() != p.ID || e.CreatedAt == 0 {
				t.Errorf("event: %v", e)
			}
			if e.ContainerId == ctr.ID && e.ContainerEventType == cri.ContainerEventType_CONTAINER_STOPPED_EVENT {
				if len(e.ContainersStatuses) != 1 || e.ContainersStatuses[0].State != cri.ContainerState_CONTAINER_EXITED {
					t.Errorf("stopped: %v", e.ContainersStatuses)
				}
			}
			if e.ContainerId == p.ID && e.ContainerEventType == cri.ContainerEventType_CONTAINER_DELETED_EVENT {
				break
			}
		}
		all := []string{"CONTAINER_CREATED_EVENT", "CONTAINER_STARTED_EVENT", "CONTAINER_STOPPED_EVENT", "CONTAINER_DELETED_EVENT"}
		if diff := cmp.Diff(map[string][]string{p.ID: all, ctr.ID: all}, got); diff != "" {
			t.Error(diff)
		}
		cancel()
		for err = nil; err == nil; { // events of other pods may be on their way
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.Canceled {
			t.Errorf("after the end: %v", err)
		}
	})
}

// A subscriber that never reads delays nobody.
func TestIdleSubscriber(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		idle, err := c.Daemon().Dial()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := idle.Close(); err != nil {
				t.Error(err)
			}
		})
		if _, err := idle.GetContainerEvents(t.Context(), &cri.GetEventsRequest{}); err != nil {
			t.Fatal(err)
		}
		p := c.Pod(t)
		begin := time.Now()
		for range 10 {
			ctr, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"}))
			if err != nil {
				t.Fatal(err)
			}
			if err := ctr.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("took %s", took)
		}
	})
}
