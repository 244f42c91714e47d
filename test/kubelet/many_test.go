package kubelet

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// manyPods is how many a node has at once.
const manyPods = 60

// TestManyPods starts all pods of a node at once, takes the daemon and the
// kubelet away under them, and wants every container to run on.
func TestManyPods(t *testing.T) {
	for name, opts := range map[string]nodeOptions{"generic": {}, "evented": {gates: map[string]bool{"EventedPLEG": true, fromCRI: true}}} {
		t.Run(name, func(t *testing.T) {
			n := ownNode(t, opts)
			n.allow = append(n.allow, `code = Unavailable`) // the daemon is not there
			pods := make([]*pod, manyPods)
			for i := range pods {
				pods[i] = newPod(t, n, "many")
			}
			before := n.allRun(t, pods)
			for _, step := range []struct {
				name string
				do   func(context.Context) error
			}{
				{"the daemon restarts", func(ctx context.Context) error { return n.daemon.Restart(ctx) }},
				{"the daemon is killed", n.killDaemon},
				{"the kubelet restarts", n.restartKubelet(syscall.SIGTERM)},
				{"the kubelet is killed", n.restartKubelet(syscall.SIGKILL)},
				{"both are killed", func(ctx context.Context) error {
					if err := n.stopKubelet(syscall.SIGKILL); err != nil {
						return err
					}
					if err := n.killDaemon(ctx); err != nil {
						return err
					}
					return n.startKubelet(ctx)
				}},
			} {
				if err := step.do(t.Context()); err != nil {
					t.Fatalf("%s: %v", step.name, err)
				}
				after := n.allRun(t, pods)
				for key, id := range before {
					if after[key] != id {
						t.Errorf("%s: container %s was %s and is %s", step.name, key, id, after[key])
					}
				}
			}
			n.probesGoOn(t, pods)
			for _, p := range pods {
				p.loses(t)
			}
			for _, p := range pods { // at once; each is waited for when the test ends
				if err := p.delete(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// loses wants the log of the container that counts to be whole: it was written
// while the daemon and the kubelet were away.
func (p *pod) loses(t *testing.T) {
	t.Helper()
	log, err := p.logs(t.Context(), "counts", nil)
	if err != nil {
		t.Error(err)
		return
	}
	lines := strings.Fields(log)
	for i, line := range lines {
		if line != strconv.Itoa(i) {
			t.Errorf("pod %s: line %d of the log is %q", p.name, i, line)
			return
		}
	}
	if len(lines) < 10 {
		t.Errorf("pod %s: the log ends with %q", p.name, log)
	}
}

func (n *node) killDaemon(ctx context.Context) error {
	if err := n.daemon.Kill(); err != nil {
		return err
	}
	return n.daemon.Start(ctx)
}

func (n *node) restartKubelet(s syscall.Signal) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := n.stopKubelet(s); err != nil {
			return err
		}
		return n.startKubelet(ctx)
	}
}

// allRun waits until every pod is ready, as the kubelet says, and its containers
// run, as the daemon says, and returns the IDs of the containers by pod/name and
// how often they were restarted.
func (n *node) allRun(t *testing.T, pods []*pod) map[string]string {
	t.Helper()
	var ids map[string]string
	n.until(t, 4*time.Minute, func(ctx context.Context) string {
		all, err := n.pods(ctx)
		if err != nil {
			return err.Error()
		}
		running, err := n.runningIDs(ctx)
		if err != nil {
			return err.Error()
		}
		ids = map[string]string{}
		for _, p := range pods {
			if all[p.name] == nil {
				return "the kubelet has no pod " + p.name
			}
			s := &all[p.name].Status
			if saw := unready(s); saw != "" {
				return p.name + " " + saw
			}
			for name, c := range containers(s) {
				ids[fmt.Sprintf("%s/%s restarted %d times", p.name, name, c.RestartCount)] = c.ContainerID
				if c.State.Running != nil && !running[c.ContainerID] {
					return fmt.Sprintf("%s: the daemon does not run %s %s", p.name, name, c.ContainerID)
				}
			}
		}
		return ""
	})
	return ids
}

// runningIDs are the containers that run, as the kubelet names them.
func (n *node) runningIDs(ctx context.Context) (map[string]bool, error) {
	version, err := n.client.Version(ctx)
	if err != nil {
		return nil, err
	}
	list, err := n.client.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
		State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
	}})
	ids := map[string]bool{}
	for _, c := range list.GetContainers() {
		ids[version.RuntimeName+"://"+c.Id] = true
	}
	return ids, err
}

// probesGoOn breaks the readiness of one pod: the kubelet still looks, and
// executes commands in containers that were there before.
func (n *node) probesGoOn(t *testing.T, pods []*pod) {
	t.Helper()
	p := pods[0]
	p.run(t, "main", "rm", "/tmp/ready")
	p.until(t, func(s *v1.PodStatus) string {
		if unready(s) == "" {
			return "still ready"
		}
		return ""
	})
}
