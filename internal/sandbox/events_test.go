package sandbox

import (
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/host"
	"berth/internal/record"
)

// published keeps the order of events. Each but the last takes a while to be
// published, in which the others could overtake it.
type published chan string

func (p published) Publish(kind runtime.ContainerEventType, _ string, _ *record.Sandbox) {
	if kind != runtime.ContainerEventType_CONTAINER_STOPPED_EVENT {
		time.Sleep(30 * time.Millisecond)
	}
	p <- kind.String()
}

func TestEventsOfAPodWhoseInitEndsAtOnce(t *testing.T) {
	events := make(published, 3)
	s := newService(t, func(o *Options) { o.Events = events })
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := host.ProcessOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed"
	put(t, s, "pod", "")
	if _, err := s.Store.Sandboxes.Update("pod", func(b *record.Sandbox) { b.Init = &record.Process{PID: p.PID, Start: p.Start} }); err != nil {
		t.Fatal(err)
	}
	s.announce("pod")
	got := []string{<-events, <-events, <-events}
	if diff := cmp.Diff([]string{"CONTAINER_CREATED_EVENT", "CONTAINER_STARTED_EVENT", "CONTAINER_STOPPED_EVENT"}, got); diff != "" {
		t.Error(diff)
	}
}
