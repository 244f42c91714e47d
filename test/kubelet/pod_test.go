package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"berth/internal/testkit"
)

// soon is how long things may take that a healthy node does in seconds.
const soon = 90 * time.Second

// A pod is a static pod of a node. Manifests have a UID of their own, so that
// one that changes is the same pod for the kubelet.
type pod struct {
	n        *node
	name     string // as the kubelet calls it
	manifest *v1.Pod
	dir      string // on the host, DIR in manifests
	// webSocket makes streams of WebSockets; without it they are SPDY.
	webSocket bool
}

// newPod reads testdata/FILE.yaml, in which IMAGE, PROBED and DIR stand for
// the images and a directory of the host, gives the pod a name and writes it
// for the kubelet. It is taken away when the test ends.
func newPod(t *testing.T, n *node, file string, change ...func(*v1.Pod)) *pod {
	t.Helper()
	p := &pod{n: n, dir: t.TempDir()}
	if err := os.Chmod(p.dir, 0o777); err != nil { // containers have users of their own
		t.Fatal(err)
	}
	p.manifest = readManifest(t, file, p.dir)
	name := testkit.Name(file)
	p.name = name + "-" + nodeName
	p.manifest.Name, p.manifest.UID = name, types.UID(uuid.NewString())
	if p.manifest.Spec.TerminationGracePeriodSeconds == nil {
		p.manifest.Spec.TerminationGracePeriodSeconds = new(int64(1))
	}
	for _, f := range change {
		f(p.manifest)
	}
	if err := p.write(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("pod %s:\n%s", p.name, p.describe())
		}
		if err := errors.Join(p.delete(), p.gone(context.Background(), soon)); err != nil {
			t.Error(err)
		}
	})
	return p
}

func readManifest(t *testing.T, file, dir string) *v1.Pod {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	var manifest v1.Pod
	full := strings.NewReplacer("IMAGE", busybox, "PROBED", probed, "DIR", dir).Replace(string(text))
	if err := yaml.UnmarshalStrict([]byte(full), &manifest); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return &manifest
}

// write puts the manifest where the kubelet finds it, whole.
func (p *pod) write() error {
	text, err := json.Marshal(p.manifest)
	if err != nil {
		return err
	}
	draft := p.n.dir + "/" + p.manifest.Name
	if err := os.WriteFile(draft, text, 0o600); err != nil {
		return err
	}
	return os.Rename(draft, p.file())
}

func (p *pod) file() string { return p.n.manifests + "/" + p.manifest.Name + ".json" }

// delete takes the manifest away; doing it twice is harmless.
func (p *pod) delete() error {
	if err := os.Remove(p.file()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// gone waits until the kubelet has forgotten the pod and nothing of it runs.
func (p *pod) gone(ctx context.Context, within time.Duration) error {
	if err := p.n.ended(); err != nil {
		return err
	}
	return testkit.Poll(ctx, within, func(ctx context.Context) string {
		pods, err := p.n.pods(ctx)
		if err != nil {
			return err.Error()
		}
		if pods[p.name] != nil {
			return "pod " + p.name + " is still there"
		}
		return p.n.running(ctx, p.manifest.UID)
	})
}

// path is the pod's, and a container's, in the kubelet's API.
func (p *pod) path(container string) string {
	path := "default/" + p.name
	if container != "" {
		path += "/" + container
	}
	return path
}

// describe is the pod's status as text, for failures.
func (p *pod) describe() string {
	pods, err := p.n.pods(context.Background())
	if err != nil {
		return err.Error()
	}
	if pods[p.name] == nil {
		return "the kubelet does not have it"
	}
	text, err := yaml.Marshal(pods[p.name].Status)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// until waits for a status that want has nothing to say about.
func (p *pod) until(t *testing.T, want func(*v1.PodStatus) string) (status *v1.PodStatus) {
	t.Helper()
	p.n.until(t, soon, func(ctx context.Context) string {
		pods, err := p.n.pods(ctx)
		switch {
		case err != nil:
			return err.Error()
		case pods[p.name] == nil:
			return "the kubelet has no pod " + p.name
		}
		status = &pods[p.name].Status
		return want(status)
	})
	return status
}

// ready waits until the pod is ready.
func (p *pod) ready(t *testing.T) *v1.PodStatus {
	t.Helper()
	return p.until(t, unready)
}

func unready(s *v1.PodStatus) string {
	if condition(s, v1.PodReady) != v1.ConditionTrue {
		return "not ready: " + states(s)
	}
	return ""
}

// phase waits for the pod's phase.
func (p *pod) phase(t *testing.T, want v1.PodPhase) *v1.PodStatus {
	t.Helper()
	return p.until(t, func(s *v1.PodStatus) string {
		if s.Phase != want {
			return fmt.Sprintf("phase %s, want %s: %s", s.Phase, want, states(s))
		}
		return ""
	})
}

func condition(s *v1.PodStatus, kind v1.PodConditionType) v1.ConditionStatus {
	for _, c := range s.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return v1.ConditionUnknown
}

// containers are the statuses of all containers by name.
func containers(s *v1.PodStatus) map[string]*v1.ContainerStatus {
	byName := map[string]*v1.ContainerStatus{}
	for _, list := range [][]v1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
		for i, c := range list {
			byName[c.Name] = &list[i]
		}
	}
	return byName
}

// states are the containers' states, for failures.
func states(s *v1.PodStatus) string {
	var b strings.Builder
	for _, list := range [][]v1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
		for _, c := range list {
			fmt.Fprintf(&b, "%s (%d restarts): %s ", c.Name, c.RestartCount, c.State.String())
		}
	}
	return b.String() + s.Reason + " " + s.Message
}

// terminated waits until the pod's container "main" has ended for good or for
// a restart, and returns how.
func (p *pod) terminated(t *testing.T) *v1.ContainerStateTerminated {
	t.Helper()
	var end *v1.ContainerStateTerminated
	p.until(t, func(s *v1.PodStatus) string {
		c := containers(s)["main"]
		switch {
		case c == nil:
			return "no container main: " + states(s)
		case c.State.Terminated != nil:
			end = c.State.Terminated
		case c.LastTerminationState.Terminated != nil:
			end = c.LastTerminationState.Terminated
		default:
			return "main did not end: " + states(s)
		}
		return ""
	})
	return end
}

// fileLines are the words that containers wrote into a file of the pod's
// directory.
func (p *pod) fileLines(name string) []string {
	text, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil {
		return []string{err.Error()}
	}
	return strings.Fields(string(text))
}
