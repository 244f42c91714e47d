package kubelet

import (
	"fmt"
	"net/url"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The probed program's ports; TCP has one a word.
const (
	httpPort = 8080
	grpcPort = 8081
)

var tcpPorts = map[string]int{"startup": 9001, "ready": 9002, "live": 9003}

// handlers make each kind of probe for a word.
var handlers = map[string]func(word string) v1.ProbeHandler{
	"exec": func(word string) v1.ProbeHandler {
		return v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"test", "!", "-e", "/state/not-" + word}}}
	},
	"http": func(word string) v1.ProbeHandler {
		return v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Port: intstr.FromInt(httpPort), Path: "/" + word}}
	},
	"tcp": func(word string) v1.ProbeHandler {
		return v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt(tcpPorts[word])}}
	},
	"grpc": func(word string) v1.ProbeHandler {
		return v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: grpcPort, Service: &word}}
	},
}

func probes(kind string) func(*v1.Pod) {
	probe := func(word string, failures int32) *v1.Probe {
		return &v1.Probe{ProbeHandler: handlers[kind](word), PeriodSeconds: 1, TimeoutSeconds: 5, FailureThreshold: failures}
	}
	return func(p *v1.Pod) {
		c := &p.Spec.Containers[0]
		c.StartupProbe, c.ReadinessProbe, c.LivenessProbe = probe("startup", 120), probe("ready", 1), probe("live", 2)
	}
}

func TestProbes(t *testing.T) {
	for kind := range handlers {
		t.Run(kind, func(t *testing.T) {
			each(t, func(t *testing.T, n *node) { probePod(t, newPod(t, n, "probed", probes(kind))) })
		})
	}
}

// probePod takes a pod through all that its probes may say: it begins as one
// that has not started.
func probePod(t *testing.T, p *pod) {
	t.Helper()
	p.until(t, func(s *v1.PodStatus) string {
		if c := containers(s)["main"]; c == nil || c.State.Running == nil || c.Started == nil || *c.Started {
			return "not running and not started: " + states(s)
		}
		return ""
	})
	p.run(t, "main", "rm", "/state/not-startup")
	p.ready(t)
	p.run(t, "main", "touch", "/state/not-ready")
	s := p.until(t, func(s *v1.PodStatus) string {
		if unready(s) == "" {
			return "still ready"
		}
		return ""
	})
	if c := containers(s)["main"]; c.RestartCount != 0 || c.State.Running == nil {
		t.Fatalf("an unready container was touched: %s", states(s))
	}
	p.run(t, "main", "rm", "/state/not-ready")
	first := containers(p.ready(t))["main"].ContainerID
	p.run(t, "main", "touch", "/state/not-live")
	s = p.until(t, func(s *v1.PodStatus) string {
		if c := containers(s)["main"]; c.RestartCount != 1 || c.State.Running == nil {
			return "not restarted: " + states(s)
		}
		return ""
	})
	if last := containers(s)["main"].LastTerminationState.Terminated; last == nil || last.ContainerID != first {
		t.Errorf("last state %v, want the end of %s", last, first)
	}
	p.run(t, "main", "rm", "/state/not-startup")
	p.ready(t)
}

// livenessBacksOff wants a container that is never live to be restarted again
// and again, and the node to wait before it. On a node that waits for shorter
// than the container lives it does not.
func livenessBacksOff(t *testing.T, n *node) {
	p := newPod(t, n, "script", script("trap '' TERM; echo run; while :; do sleep 0.1; done"), func(p *v1.Pod) {
		p.Spec.Containers[0].LivenessProbe = &v1.Probe{
			ProbeHandler:  v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"false"}}},
			PeriodSeconds: 1, FailureThreshold: 1,
		}
	})
	p.until(t, func(s *v1.PodStatus) string {
		c := containers(s)["main"]
		switch {
		case c == nil || c.RestartCount < 1 || c.State.Waiting == nil || c.State.Waiting.Reason != "CrashLoopBackOff":
			return "does not back off: " + states(s)
		case c.LastTerminationState.Terminated == nil || c.LastTerminationState.Terminated.ExitCode != 137:
			return fmt.Sprintf("ended as %v, want code 137", c.LastTerminationState.Terminated)
		}
		return ""
	})
	log, err := p.logs(t.Context(), "main", url.Values{"previous": {"true"}})
	if err != nil || log != "run\n" {
		t.Errorf("the log of the one before: %q %v", log, err)
	}
}
