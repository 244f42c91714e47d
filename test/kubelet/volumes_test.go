package kubelet

import (
	"context"
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// What the containers of testdata/volumes.yaml find in their volumes and their
// environment.
func TestVolumes(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "volumes", func(p *v1.Pod) {
			p.Labels = map[string]string{"colour": "blue"}
			p.Annotations = map[string]string{"note": "seen"}
		})
		s := p.ready(t)
		for name, test := range map[string]struct{ script, want string }{
			"downward volume":          {"cat /info/labels; echo; cat /info/name; echo; cat /info/limit", "colour=\"blue\"\n" + p.name + "\n64\n"},
			"mode of a file in it":     {"cat /info/a/note; echo; stat -Lc %a /info/a/note", "seen\n400\n"},
			"environment":              {"echo $POD_NAME $POD_IP $HOST_LIMIT $PLAIN $EXPANDED", p.name + " " + s.PodIP + " 250 plain plain-and-more\n"},
			"empty volume in memory":   {"df /memory | tail -1 | cut -d' ' -f1; df -m /memory | tail -1 | awk '{print $2}'", "tmpfs\n16\n"},
			"path in a volume":         {"cat /sub; cat /shared/dir/file", "from init\nfrom init\n"},
			"path in a volume by name": {"cat /by-name/file", "of " + p.name + "\n"},
			"read-only volume":         {"touch /read-only/x 2>/dev/null || echo refused", "refused\n"},
			"host's file":              {"cat /host-file", "from the host\n"},
			"device":                   {"test -c /dev/my-null && echo device", "device\n"},
		} {
			if got := strings.TrimSuffix(p.run(t, "main", "sh", "-c", test.script), "\n"); got != strings.TrimSuffix(test.want, "\n") {
				t.Errorf("%s: %q, want %q", name, got, test.want)
			}
		}
	})
}

func TestDownwardVolumeFollowsThePod(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "volumes", func(p *v1.Pod) {
			p.Labels, p.Annotations = map[string]string{"colour": "blue"}, map[string]string{"note": "seen"}
		})
		before := containers(p.ready(t))["main"].ContainerID
		p.manifest.Labels["colour"] = "red"
		if err := p.write(); err != nil {
			t.Fatal(err)
		}
		n.until(t, soon, func(context.Context) string {
			if got := p.run(t, "main", "cat", "/info/labels"); !strings.Contains(got, "red") {
				return fmt.Sprintf("the volume says %q", got)
			}
			return ""
		})
		if after := containers(p.ready(t))["main"].ContainerID; after != before {
			t.Error("the new label restarted the container")
		}
	})
}

// A mount that the host makes below a volume shows in a container that asks for
// it, and one that a privileged container makes shows on the host.
func TestMountPropagation(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "propagation")
		p.ready(t)
		p.run(t, "from", "sh", "-c", "mkdir -p /host/inner && mount -t tmpfs inner /host/inner && echo seen >/host/inner/file")
		if got := p.run(t, "to", "cat", "/host/inner/file"); got != "seen\n" {
			t.Errorf("the mount does not show: %q", got)
		}
		if got := p.run(t, "private", "ls", "/host/inner"); got != "" {
			t.Errorf("the mount shows where it was not asked for: %q", got)
		}
		p.run(t, "from", "umount", "/host/inner")
	})
}

func downward(path, field string) v1.VolumeProjection {
	return v1.VolumeProjection{DownwardAPI: &v1.DownwardAPIProjection{
		Items: []v1.DownwardAPIVolumeFile{{Path: path, FieldRef: &v1.ObjectFieldSelector{FieldPath: field}}},
	}}
}
