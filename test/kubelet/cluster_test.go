package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What a standalone kubelet does not do: it refuses projected volumes and knows
// no address of its node. The node's back-off is long enough to be seen, too.
func TestInACluster(t *testing.T) {
	needKubelet(t)
	n := ownNode(t, nodeOptions{cluster: emptyCluster(t), config: map[string]any{
		"registerNode": false, "crashLoopBackOff": map[string]any{"maxContainerRestartPeriod": "10s"},
	}})
	n.allow = append(n.allow, `this cluster is empty`, `could not find the requested resource`,
		`err="node \\"node\\" not found"`, `Failed creating a mirror pod`)
	t.Run("pods", func(t *testing.T) {
		for name, f := range map[string]func(*testing.T, *node){
			"projected volume": projectedVolume, "address of the host": hostAddress, "liveness backs off": livenessBacksOff,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				f(t, n)
			})
		}
	})
}

// projectedVolume wants what the pod says of itself in a volume, and a change
// of it.
func projectedVolume(t *testing.T, n *node) {
	p := newPod(t, n, "script", func(p *v1.Pod) { p.Labels = map[string]string{"colour": "blue"} }, mount(v1.VolumeSource{
		Projected: &v1.ProjectedVolumeSource{DefaultMode: new(int32(0o440)), Sources: []v1.VolumeProjection{
			downward("pod/labels", "metadata.labels"), downward("pod/name", "metadata.name"),
		}},
	}, v1.VolumeMount{MountPath: "/projected", ReadOnly: true}))
	p.ready(t)
	const show = "cat /projected/pod/labels; echo; cat /projected/pod/name; echo; stat -Lc %a /projected/pod/name; touch /projected/x 2>/dev/null || echo read-only"
	if got, want := p.run(t, "main", "sh", "-c", show), "colour=\"blue\"\n"+p.name+"\n440\nread-only\n"; got != want {
		t.Errorf("it shows %q, want %q", got, want)
	}
	p.manifest.Labels["colour"] = "red"
	if err := p.write(); err != nil {
		t.Fatal(err)
	}
	n.until(t, soon, func(context.Context) string {
		if got := p.run(t, "main", "cat", "/projected/pod/labels"); got != `colour="red"` {
			return fmt.Sprintf("the volume says %q", got)
		}
		return ""
	})
}

func hostAddress(t *testing.T, n *node) {
	host := newPod(t, n, "script", func(p *v1.Pod) { p.Spec.HostNetwork = true })
	if s := host.ready(t); s.PodIP != nodeAddress || s.HostIP != nodeAddress {
		t.Errorf("a pod with the host's network has the addresses %s and %s, want %s", s.PodIP, s.HostIP, nodeAddress)
	}
}

// emptyCluster serves what a kubelet wants of an API server: one node and
// nothing else. It takes no change. With it a kubelet is not standalone.
func emptyCluster(t *testing.T) (url string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(answer))
	t.Cleanup(s.Close)
	return s.URL
}

func answer(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	node := v1.Node{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: nodeName, UID: "1", ResourceVersion: "1"},
		Status: v1.NodeStatus{
			Addresses:   []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: nodeAddress}},
			Allocatable: v1.ResourceList{v1.ResourcePods: resource.MustParse("100"), v1.ResourceCPU: resource.MustParse("8"), v1.ResourceMemory: resource.MustParse("8Gi")},
			Conditions:  []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue}},
		},
	}
	kind := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	code, body := http.StatusOK, any(nil)
	switch {
	case query.Get("watch") != "" && query.Get("sendInitialEvents") == "":
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush() // the client may have gone
		<-r.Context().Done()
		return
	case r.Method == http.MethodGet && kind == "nodes" && query.Get("watch") == "":
		body = v1.NodeList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: []v1.Node{node}}
	case strings.Contains(r.URL.Path, "/nodes/"+nodeName):
		body = node
	case r.Method == http.MethodGet && (kind == "pods" || kind == "services") && query.Get("watch") == "":
		body = v1.PodList{ // with no items the kind alone differs
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: map[string]string{"pods": "PodList", "services": "ServiceList"}[kind]},
			ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: []v1.Pod{},
		}
	case query.Get("sendInitialEvents") != "":
		code = http.StatusUnprocessableEntity // the client lists instead
		body = failure(code, metav1.StatusReasonInvalid)
	default:
		code = http.StatusNotFound
		body = failure(code, metav1.StatusReasonNotFound)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the client may have gone
}

func failure(code int, reason metav1.StatusReason) metav1.Status {
	return metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Reason: reason, Code: int32(code), Message: "this cluster is empty"}
}
