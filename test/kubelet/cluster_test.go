package kubelet

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

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
