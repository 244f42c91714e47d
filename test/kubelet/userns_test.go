package kubelet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	v1 "k8s.io/api/core/v1"

	"berth/internal/testkit"
)

func ownUsers(p *v1.Pod) { p.Spec.HostUsers = new(false) }

// emptyVolume adds an emptyDir at /scratch.
func emptyVolume(p *v1.Pod) {
	p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: "scratch", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}})
	c := &p.Spec.Containers[0]
	c.VolumeMounts = append(c.VolumeMounts, v1.VolumeMount{Name: "scratch", MountPath: "/scratch"})
}

// imageVolume adds an image at /image, and what is below sub of it at /sub.
func imageVolume(ref, sub string) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: "image", VolumeSource: v1.VolumeSource{
			Image: &v1.ImageVolumeSource{Reference: ref, PullPolicy: v1.PullIfNotPresent},
		}})
		c := &p.Spec.Containers[0]
		c.VolumeMounts = append(c.VolumeMounts, v1.VolumeMount{Name: "image", MountPath: "/image"}, v1.VolumeMount{Name: "image", MountPath: "/sub", SubPath: sub})
	}
}

func filesImage(t *testing.T) (ref, id string) {
	t.Helper()
	return ownImage(t, func(o *testkit.ImageOptions) {
		o.Empty, o.Files = true, map[string]string{"data/a/file": "of the image\n", "data/b": "b\n"}
	})
}

// Pods with hostUsers: false have users of their own, and are otherwise as
// others: volumes, logs, exec, hooks, probes, port-forward.
func TestHostUsers(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		change := []func(*v1.Pod){ownUsers, emptyVolume, func(p *v1.Pod) {
			c := &p.Spec.Containers[0]
			c.Command = []string{"sh", "-c", "echo started by $(id -u); echo done > /dev/termination-log; exec httpd -f -p 8080 -h /scratch"}
			c.ReadinessProbe = &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"test", "-f", "/scratch/hooked"}}}, PeriodSeconds: 1}
			c.Lifecycle = &v1.Lifecycle{PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"touch", "/scratch/hooked"}}}}
		}}
		a, b := newPod(t, n, "script", change...), newPod(t, n, "script", change...)
		a.ready(t)
		b.ready(t)
		const script = "id -u; for f in /scratch /scratch/hooked /etc/hosts /etc/resolv.conf /dev/termination-log; do stat -c %u:%g $f; done; touch /host/new && stat -c %u /host/new; hostname -i >/dev/null && echo named"
		if got, want := a.run(t, "main", "sh", "-c", script), "0\n0:0\n0:0\n0:0\n0:0\n0:0\n0\nnamed\n"; got != want {
			t.Errorf("it says %q, want %q", got, want)
		}
		first := func(p *pod) string { return strings.Fields(p.run(t, "main", "cat", "/proc/self/uid_map"))[1] }
		if x, y := first(a), first(b); x == y || x == "0" || y == "0" {
			t.Errorf("they have the users of the host from %s and %s on", x, y)
		}
		a.logged(t, "main", "started by 0")
		if _, err := ask(fmt.Sprintf("127.0.0.1:%d", a.forward(t, 8080))); err != nil {
			t.Errorf("port-forward: %v", err)
		}
	})
}

func TestHostUsersShared(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "script", ownUsers, func(p *v1.Pod) {
			p.Spec.ShareProcessNamespace = new(true)
			p.Spec.SecurityContext = &v1.PodSecurityContext{RunAsUser: new(int64(1000)), FSGroup: new(int64(3000)), Sysctls: []v1.Sysctl{{Name: "net.ipv4.ip_unprivileged_port_start", Value: "99"}}}
		}, emptyVolume)
		p.ready(t)
		if got, want := p.run(t, "main", "sh", "-c", "id -u; touch /scratch/x && stat -c %u:%g /scratch/x; tr '\\0' ' ' </proc/1/cmdline | cut -c1-8; cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "1000\n1000:3000\npod-init\n99\n"; got != want {
			t.Errorf("it says %q, want %q", got, want)
		}
	})
}

func TestImageVolume(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		for name, change := range map[string]func(*v1.Pod){"pod": func(*v1.Pod) {}, "pod with users of its own": ownUsers} {
			ref, _ := filesImage(t)
			p := newPod(t, n, "script", imageVolume(ref, "data/a"), change)
			p.ready(t)
			got := p.run(t, "main", "sh", "-c", "cat /image/data/a/file /image/data/b /sub/file; stat -c %u:%g /sub/file; touch /sub/x 2>/dev/null || echo read-only")
			if want := "of the image\nb\nof the image\n0:0\nread-only\n"; got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
	})
}

// An image that a volume shows is in use, for the kubelet that looks for room.
func TestImageVolumeIsNoGarbage(t *testing.T) {
	n := ownNode(t, nodeOptions{})
	n.before = "" // its images are not what they were
	garbage, garbageID := ownImage(t)
	used, usedID := filesImage(t)
	p := newPod(t, n, "script", imageVolume(used, "data"))
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
			return "the image that nothing uses is still there"
		case !slices.Contains(ids, usedID):
			t.Fatalf("the image of a volume is gone: %q", ids)
		}
		return ""
	})
}
