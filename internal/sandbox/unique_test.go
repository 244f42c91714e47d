package sandbox

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/record"
)

// empty is a pod without containers.
type empty struct{}

func (empty) StopAll(context.Context, string) error   { return nil }
func (empty) RemoveAll(context.Context, string) error { return nil }

// Of several pods that ask at once to have a name alone, one gets it; when it is
// removed the name is free.
func TestUniqueName(t *testing.T) {
	s := newService(t, func(o *Options) {
		o.Containers, o.Events, o.Handlers, o.Default = empty{}, unheard{}, []string{"berth"}, "berth"
	})
	run := func(uid string) (string, error) {
		node := &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE, Ipc: runtime.NamespaceMode_NODE, Pid: runtime.NamespaceMode_CONTAINER}
		return s.Run(t.Context(), &runtime.RunPodSandboxRequest{Config: &runtime.PodSandboxConfig{
			Metadata:    &runtime.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: uid},
			Annotations: map[string]string{record.AnnotationUniqueName: "true"},
			Linux:       &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: node}},
		}})
	}
	for round := range 2 {
		var wg sync.WaitGroup
		ids, errs := make([]string, 8), make([]error, 8)
		for i := range ids {
			wg.Go(func() { ids[i], errs[i] = run(fmt.Sprintf("uid-%d-%d", round, i)) })
		}
		wg.Wait()
		made := ""
		for i, err := range errs {
			switch {
			case err == nil && made == "":
				made = ids[i]
			case !errdefs.IsAlreadyExists(err):
				t.Errorf("pod %s beside %s: %v", ids[i], made, err)
			}
		}
		if made == "" {
			t.Fatal("none got the name")
		}
		if err := s.Remove(t.Context(), made); err != nil {
			t.Fatal(err)
		}
	}
}
