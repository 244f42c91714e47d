package kubelet

import (
	"context"
	"slices"
	"syscall"
	"testing"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// ownImage pushes an image that no node has and returns its reference and ID.
func ownImage(t *testing.T, change ...func(*testkit.ImageOptions)) (ref, id string) {
	t.Helper()
	o := testkit.ImageOptions{Salt: testkit.Name(t.Name())}
	for _, f := range change {
		f(&o)
	}
	img, err := testkit.Image(o)
	if err != nil {
		t.Fatal(err)
	}
	repo := testkit.Name(t.Name()) + ":1"
	if _, err := registry.Push(repo, img); err != nil {
		t.Fatal(err)
	}
	return registry.Ref(repo), testkit.ID(img)
}

func TestPullPolicies(t *testing.T) {
	for name, test := range map[string]struct {
		image  string // "" is one of its own
		policy v1.PullPolicy
		reason []string // for which main waits; none: it runs
	}{
		"missing is pulled": {"", v1.PullIfNotPresent, nil},
		"always":            {"", v1.PullAlways, nil},
		"never and missing": {"", v1.PullNever, []string{"ErrImageNeverPull"}},
		"no such image":     {"none:1", v1.PullIfNotPresent, []string{"ErrImagePull", "ImagePullBackOff"}},
		"not a reference":   {"Not/A:Reference::", v1.PullIfNotPresent, []string{"InvalidImageName"}},
		"never and there":   {"busybox:1", v1.PullNever, nil},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, n *node) {
				image := registry.Ref(test.image)
				if test.image == "" {
					image, _ = ownImage(t)
				}
				p := newPod(t, n, "script", func(p *v1.Pod) { p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy = image, test.policy })
				if test.reason == nil {
					p.ready(t)
					return
				}
				for _, reason := range test.reason {
					p.until(t, func(s *v1.PodStatus) string {
						if c := containers(s)["main"]; c == nil || c.State.Waiting == nil || c.State.Waiting.Reason != reason {
							return "want " + reason + ": " + states(s)
						}
						return ""
					})
				}
			})
		})
	}
}

// Entrypoint, command, environment, directory and user of an image count where
// the pod says nothing.
func TestImageConfiguration(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		ref, _ := ownImage(t, func(o *testkit.ImageOptions) {
			o.Entrypoint, o.Cmd = []string{"sh", "-c"}, []string{"echo $GREETING; pwd; id -u; sleep 3600"}
			o.Env, o.WorkingDir, o.User = []string{"GREETING=hello"}, "/tmp", "dev"
		})
		p := newPod(t, n, "script", func(p *v1.Pod) { p.Spec.Containers[0].Image, p.Spec.Containers[0].Command = ref, nil })
		p.ready(t)
		if got := p.logged(t, "main", "1000"); got != "hello\n/tmp\n1000\n" {
			t.Errorf("it says %q", got)
		}
		own := newPod(t, n, "script", script("true"), func(p *v1.Pod) {
			p.Spec.Containers[0].Image, p.Spec.Containers[0].Command = ref, nil
			p.Spec.Containers[0].Args, p.Spec.Containers[0].WorkingDir = []string{"echo $GREETING from $PWD; sleep 3600"}, "/etc"
			p.Spec.Containers[0].Env = []v1.EnvVar{{Name: "GREETING", Value: "good day"}}
		})
		own.ready(t)
		own.logged(t, "main", "good day from /etc\n")
	})
}

// A kubelet that wants more room for images than there is removes those that no
// container uses. Its garbage collection does so too, but only of images that
// it has known for five minutes.
func TestImageGarbage(t *testing.T) {
	n := ownNode(t, nodeOptions{})
	n.before = "" // its images are not what they were
	garbage, garbageID := ownImage(t)
	used, usedID := ownImage(t)
	p := newPod(t, n, "script", func(p *v1.Pod) { p.Spec.Containers[0].Image = used })
	p.ready(t)
	if _, err := n.client.Pull(t.Context(), garbage); err != nil {
		t.Fatal(err)
	}
	if err := n.stopKubelet(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	n.opts.config = map[string]any{"evictionHard": map[string]string{"imagefs.available": "99%"}, "imageMinimumGCAge": "1s"}
	n.allow = append(n.allow, `eviction_manager.go.*(critical pod|unable to evict any pods|no pods are active to evict)`)
	if err := n.startKubelet(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.until(t, soon, func(ctx context.Context) string {
		ids, err := n.imageIDs(ctx)
		switch {
		case err != nil:
			return err.Error()
		case slices.Contains(ids, garbageID):
			return "the image is still there"
		case !slices.Contains(ids, usedID):
			t.Fatalf("an image in use is gone: %q", ids)
		}
		return ""
	})
	if s := p.ready(t); containers(s)["main"].RestartCount != 0 {
		t.Errorf("restarted: %s", states(s))
	}
}

func (n *node) imageIDs(ctx context.Context) ([]string, error) {
	list, err := n.client.ListImages(ctx, &cri.ListImagesRequest{})
	var ids []string
	for _, i := range list.GetImages() {
		ids = append(ids, i.Id)
	}
	return ids, err
}
