package client

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func testSet() *Set {
	pod := func(id, namespace, name string, attempt uint32, ready bool, created int64) *runtime.PodSandbox {
		p := &runtime.PodSandbox{Id: id, Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: namespace, Attempt: attempt}, CreatedAt: created}
		if !ready {
			p.State = runtime.PodSandboxState_SANDBOX_NOTREADY
		}
		return p
	}
	ctr := func(id, pod, name string, attempt uint32, state runtime.ContainerState, created int64) *runtime.Container {
		return &runtime.Container{Id: id, PodSandboxId: pod, Metadata: &runtime.ContainerMetadata{Name: name, Attempt: attempt}, State: state, CreatedAt: created}
	}
	const running, exited = runtime.ContainerState_CONTAINER_RUNNING, runtime.ContainerState_CONTAINER_EXITED
	return &Set{
		Pods: []*runtime.PodSandbox{
			pod("aaa1", "default", "web", 0, false, 1),
			pod("aaa2", "default", "web", 1, true, 2),
			pod("bbb1", "shop", "db", 0, true, 3),
			pod("bbb2", "default", "db", 0, true, 4),
			pod("ccc1", "default", "job", 0, false, 5),
			pod("ddd1", "default", "ccc", 0, true, 6), // its name begins another's ID
			pod("eee1", "default", "empty", 0, true, 7),
		},
		Containers: []*runtime.Container{
			ctr("1111", "aaa1", "web", 0, exited, 1),
			ctr("1112", "aaa2", "web", 0, exited, 2),
			ctr("1113", "aaa2", "web", 1, running, 3),
			ctr("1114", "aaa2", "proxy", 0, running, 4),
			ctr("2221", "bbb1", "db", 0, running, 5),
			ctr("2222", "bbb2", "main", 0, running, 6),
			ctr("2223", "bbb2", "init", 0, exited, 5),
			ctr("3331", "ccc1", "work", 0, exited, 7),
			ctr("bbb3", "ddd1", "x", 0, running, 8), // begins as two pods do
			ctr("4441", "ddd1", "proxy", 0, running, 9),
		},
	}
}

func TestFindPod(t *testing.T) {
	set := testSet()
	for _, test := range []struct{ ref, want, fails string }{
		{ref: "aaa1", want: "aaa1"},
		{ref: "web", want: "aaa2"},
		{ref: "default/web", want: "aaa2"},
		{ref: "shop/db", want: "bbb1"},
		{ref: "ccc1", want: "ccc1"},
		{ref: "ccc", want: "ddd1"}, // a name before a prefix
		{ref: "dd", want: "ddd1"},
		{ref: "db", fails: `"db" fits 2 pods: bbb1 (shop/db), bbb2 (default/db); say which`},
		{ref: "b", fails: `"b" fits 2 pods`},
		{ref: "nothing", fails: `no pod is named "nothing"`},
		{ref: "", fails: `no pod is named ""`},
	} {
		got, err := FindPod(set.Pods, test.ref)
		check(t, "pod", test.ref, got.GetId(), test.want, err, test.fails)
	}
}

func check(t *testing.T, kind, ref, got, want string, err error, fails string) {
	t.Helper()
	switch {
	case fails == "" && (err != nil || got != want):
		t.Errorf("%s %q is %s (%v), want %s", kind, ref, got, err, want)
	case fails != "" && (err == nil || !strings.Contains(err.Error(), fails)):
		t.Errorf("%s %q: error %v, want %q", kind, ref, err, fails)
	case fails != "" && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err):
		t.Errorf("%s %q: error %v is of no kind", kind, ref, err)
	}
}

func TestFindContainer(t *testing.T) {
	set := testSet()
	for _, test := range []struct {
		ref     string
		running bool
		want    string
		fails   string
	}{
		{ref: "1111", want: "1111"},
		{ref: "default/web/web", want: "1113"},
		{ref: "web/web", want: "1113"},
		{ref: "web/proxy", want: "1114"},
		{ref: "web", want: "1113"}, // the pod's container of the same name
		{ref: "shop/db/db", want: "2221"},
		{ref: "shop/db", want: "2221"},
		{ref: "db/db", want: "2221"},
		{ref: "default/db", running: true, want: "2222"},
		{ref: "default/db", fails: "pod default/db has the containers init, main: say which, as in default/db/init"},
		{ref: "db", fails: `"db" fits 2 pods`},
		{ref: "work", want: "3331"},
		{ref: "job", want: "3331"},
		{ref: "job", running: true, fails: "no container of pod default/job runs (it has work)"},
		{ref: "proxy", fails: `"proxy" fits 2 containers: 1114 (default/web/proxy), 4441 (default/ccc/proxy); say which`},
		{ref: "empty", fails: "pod default/empty has no container"},
		{ref: "333", want: "3331"},
		{ref: "222", fails: `"222" fits 3 containers`},
		{ref: "bbb", fails: `"bbb" begins the ID of a pod and of container bbb3`},
		{ref: "ccc1", want: "3331"},
		{ref: "web/none", fails: `no container or pod is named "web/none"`},
		{ref: "", fails: `no container or pod is named ""`},
	} {
		got, err := set.FindContainer(test.ref, test.running)
		check(t, "container", test.ref, got.GetId(), test.want, err, test.fails)
	}
}

func TestContainerInPod(t *testing.T) {
	set := testSet()
	for _, test := range []struct{ ref, name, want, fails string }{
		{ref: "web", name: "proxy", want: "1114"},
		{ref: "web", name: "web", want: "1113"},
		{ref: "web", name: "db", fails: `pod default/web has no container "db"; it has web, proxy`},
		{ref: "none", name: "x", fails: "no pod is named"},
	} {
		got, err := set.In(test.ref, test.name)
		check(t, "container", test.ref+" "+test.name, got.GetId(), test.want, err, test.fails)
	}
}

func TestFindImage(t *testing.T) {
	images := []*runtime.Image{
		{Id: "sha256:abc1", RepoTags: []string{"a.example/x:1"}, RepoDigests: []string{"a.example/x@sha256:f"}},
		{Id: "sha256:abc2"},
	}
	for _, test := range []struct{ ref, want, fails string }{
		{ref: "a.example/x:1", want: "sha256:abc1"},
		{ref: "a.example/x@sha256:f", want: "sha256:abc1"},
		{ref: "abc2", want: "sha256:abc2"},
		{ref: "sha256:abc2", want: "sha256:abc2"},
		{ref: "abc", fails: `"abc" fits 2 images`},
		{ref: "sha256:", fails: "no image is named"},
		{ref: "x", fails: "no image is named"},
	} {
		got, err := FindImage(images, test.ref)
		check(t, "image", test.ref, got.GetId(), test.want, err, test.fails)
	}
}

// Two pods of one name, of two UIDs, are two: none is picked for the user.
func TestFindTwins(t *testing.T) {
	set := testSet()
	set.Pods[0].State = runtime.PodSandboxState_SANDBOX_READY
	set.Pods[0].Metadata.Uid, set.Pods[1].Metadata.Uid = "one", "two"
	set.Containers[0].State = runtime.ContainerState_CONTAINER_RUNNING
	if p, err := FindPod(set.Pods, "web"); err == nil || !strings.Contains(err.Error(), `"web" fits 2 pods: aaa1 (default/web), aaa2 (default/web); say which`) {
		t.Errorf("pod %v, %v", p, err)
	}
	if c, err := set.FindContainer("web/web", true); err == nil || !strings.Contains(err.Error(), "fits 2 containers: 1111 (default/web/web), 1113 (default/web/web)") {
		t.Errorf("container %v, %v", c, err)
	}
	if p, err := FindPod(set.Pods, "aaa1"); err != nil || p.Id != "aaa1" {
		t.Errorf("by its ID: %v, %v", p, err)
	}
}
