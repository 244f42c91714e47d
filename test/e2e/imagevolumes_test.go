package e2e

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// volumeOf is the mount of an image, as a kubelet asks for it.
func volumeOf(ref, path, sub string) *cri.Mount {
	return &cri.Mount{Image: &cri.ImageSpec{Image: ref}, ImageSubPath: sub, ContainerPath: path, Readonly: true}
}

// models is an image that holds files and no program, of one layer or two.
func models(t *testing.T, c *testkit.Client, layers int) (ref, id string) {
	t.Helper()
	o := testkit.ImageOptions{Empty: true, Files: map[string]string{
		"models/a/weights": "of a\n", "models/b": "of b\n", "bin/run": "#!/bin/sh\necho ran\n",
		"etc/passwd": "of the image\n", "absolute": "->/models/a", "out": "->../../../../../etc/passwd",
	}}
	if layers == 2 {
		o.Blobs = []int64{100}
	}
	ref = image(t, c, o)
	found, err := c.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	return ref, found.Image.Id
}

const showVolume = `
find /vol -type f -name weights; cat /vol/models/b
for f in /vol /vol/models/b; do stat -c %u:%g $f; done
touch /vol/new 2>&1
/vol/bin/run 2>&1
cat /a/weights /one /out
echo $(grep ' /vol ' /proc/mounts | cut -d' ' -f4 | tr , '\n' | grep -x -e ro -e noexec)
true
`

const volumeShown = `/vol/models/a/weights
of b
0:0
0:0
touch: /vol/new: Read-only file system
sh: /vol/bin/run: Permission denied
of a
of b
of the image
ro noexec
`

func TestImageMounts(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		for _, tc := range []struct {
			name   string
			layers int
			change func(*cri.PodSandboxConfig)
		}{
			{"one layer", 1, func(*cri.PodSandboxConfig) {}},
			{"layers", 2, func(*cri.PodSandboxConfig) {}},
			{"one layer, mapped", 1, userNamespace},
			{"layers, mapped", 2, userNamespace},
		} {
			t.Run(tc.name, func(t *testing.T) {
				ref, id := models(t, c, tc.layers)
				p := c.Pod(t, tc.change)
				asked := []*cri.Mount{volumeOf(id, "/vol", ""), volumeOf(ref, "/a", "absolute"), volumeOf(id, "/one", "models/b"), volumeOf(id, "/out", "out")}
				if tc.name == "layers, mapped" { // as a kubelet does
					for _, m := range asked {
						mapped(m)
					}
				}
				asked[2].MountOptions = []string{"exec", "nodev"}
				ctr := sleeper(t, p, mounts(asked...))
				if diff := cmp.Diff(volumeShown, ctr.Exec(t, "sh", "-c", showVolume)); diff != "" {
					t.Error(diff)
				}
				for i, m := range ctr.Status(t).Mounts {
					if m.GetImage().GetImage() != id || !strings.Contains(m.Image.ImageRef, "@sha256:") || m.ContainerPath != asked[i].ContainerPath {
						t.Errorf("status has the mount %v, of the image %s", m, id)
					}
				}
				// The container keeps what it has when the image goes.
				if _, err := c.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id}}); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(volumeShown, ctr.Exec(t, "sh", "-c", showVolume)); diff != "" {
					t.Error(diff)
				}
				if _, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"}, mounts(volumeOf(id, "/vol", "")))); err == nil || !strings.HasPrefix(status.Convert(err).Message(), "ImageVolumeMountFailed: ") {
					t.Errorf("another container: %v", err)
				}
			})
		}
	})
}

func TestImageMountsRefused(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		ref, _ := models(t, c, 1)
		for name, tc := range map[string]struct {
			mount *cri.Mount
			code  codes.Code
			words string
		}{
			"no such image":    {volumeOf("registry.invalid/none:1", "/vol", ""), codes.NotFound, "registry.invalid/none:1"},
			"no such sub path": {volumeOf(ref, "/vol", "models/z"), codes.NotFound, `"models/z" does not exist`},
			"below a file":     {volumeOf(ref, "/vol", "models/b/z"), codes.NotFound, "image_sub_path"},
			"out of it":        {volumeOf(ref, "/vol", "../x"), codes.InvalidArgument, "mounts[0].image_sub_path"},
			"absolute":         {volumeOf(ref, "/vol", "/models"), codes.InvalidArgument, "mounts[0].image_sub_path"},
			"writable":         {&cri.Mount{Image: &cri.ImageSpec{Image: ref}, ContainerPath: "/vol"}, codes.InvalidArgument, "mounts[0].readonly"},
			"no name":          {volumeOf("", "/vol", ""), codes.InvalidArgument, "mounts[0].image"},
			"with a host path": {&cri.Mount{Image: &cri.ImageSpec{Image: ref}, HostPath: "/tmp", ContainerPath: "/vol", Readonly: true}, codes.InvalidArgument, "mounts[0].host_path"},
			"sub path alone":   {&cri.Mount{HostPath: "/tmp", ImageSubPath: "x", ContainerPath: "/vol"}, codes.InvalidArgument, "mounts[0].image_sub_path"},
		} {
			_, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"}, mounts(tc.mount)))
			if err == nil {
				t.Errorf("%s: no error", name)
				continue
			}
			testkit.WantCode(t, err, tc.code, tc.words)
		}
	})
}
