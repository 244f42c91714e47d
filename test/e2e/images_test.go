package e2e

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
	"berth/internal/testkit/registrytest"
)

func spec(ref string) *cri.ImageSpec { return &cri.ImageSpec{Image: ref} }

// removeImage removes an image at the test's end.
func removeImage(t *testing.T, c *testkit.Client, ref string) {
	t.Helper()
	t.Cleanup(func() {
		if _, err := c.RemoveImage(context.Background(), &cri.RemoveImageRequest{Image: spec(ref)}); err != nil {
			t.Error(err)
		}
	})
}

func TestPullStatusRemove(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ref, img := pushed(t, testkit.ImageOptions{User: "dev"})
		absent, err := c.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: spec(ref)})
		if err != nil || absent.Image != nil {
			t.Fatalf("before the pull: %v, %v", absent, err)
		}
		got, err := c.PullImage(t.Context(), &cri.PullImageRequest{Image: spec(ref)})
		if err != nil {
			t.Fatal(err)
		}
		removeImage(t, c, ref)
		id := testkit.ID(img)
		if got.ImageRef != id {
			t.Errorf("image ref %s, want the config's digest %s", got.ImageRef, id)
		}
		digest, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		repo := strings.TrimSuffix(ref, ":1")
		for _, name := range []string{ref, repo + "@" + digest.String(), id, strings.TrimPrefix(id, "sha256:")[:14]} {
			s, err := c.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: spec(name), Verbose: true})
			if err != nil || s.Image == nil {
				t.Errorf("%s: %v, %v", name, s, err)
				continue
			}
			if s.Image.Id != id || s.Image.Username != "dev" || s.Image.Size < 500_000 || s.Info["info"] == "" {
				t.Errorf("%s: %v", name, s)
			}
			if diff := cmp.Diff([]string{ref}, s.Image.RepoTags); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{repo + "@" + digest.String()}, s.Image.RepoDigests); diff != "" {
				t.Error(diff)
			}
		}
		list, err := c.ListImages(t.Context(), &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: spec(ref)}})
		if err != nil || len(list.Images) != 1 || list.Images[0].Id != id {
			t.Errorf("filtered list: %v, %v", list, err)
		}
		all, err := c.ListImages(t.Context(), &cri.ListImagesRequest{})
		if err != nil || len(all.Images) < 2 {
			t.Errorf("list: %v, %v", all, err)
		}
		none, err := c.ListImages(t.Context(), &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: spec("none.test/none:1")}})
		if err != nil || len(none.Images) != 0 {
			t.Errorf("list of none: %v, %v", none, err)
		}
		for range 2 {
			if _, err := c.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: spec(id)}); err != nil {
				t.Error(err)
			}
		}
		gone, err := c.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: spec(ref)})
		if err != nil || gone.Image != nil {
			t.Errorf("after removal: %v, %v", gone, err)
		}
	})
}

func TestPullThroughMirror(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ref, _ := pushed(t, testkit.ImageOptions{})
		host := testkit.Name("upstream") + ".test"
		dir := filepath.Join(c.Daemon().CertsDir, host)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		text := "server = \"http://127.0.0.1:1\"\n[host.\"http://" + registry.Host + "\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		mirrored := strings.Replace(ref, registry.Host, host, 1)
		if _, err := c.Pull(t.Context(), mirrored); err != nil {
			t.Fatal(err)
		}
		removeImage(t, c, mirrored)
		if got := c.Pod(t).Output(t, mirrored, []string{"echo", "runs"}); got != "runs\n" {
			t.Errorf("got %q", got)
		}
	})
}

// A registry of its own, for it asks everyone for credentials.
func TestPullWithCredentials(t *testing.T) {
	private := registrytest.Own(t)
	img, err := testkit.Image(testkit.ImageOptions{Empty: true, Blobs: []int64{1000}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := private.Push("private:1", img); err != nil {
		t.Fatal(err)
	}
	private.RequireToken("robot", "s3cr3t")
	each(t, func(t *testing.T, c *testkit.Client) {
		pull := func(auth *cri.AuthConfig) error {
			_, err := c.PullImage(t.Context(), &cri.PullImageRequest{Image: spec(private.Ref("private:1")), Auth: auth})
			return err
		}
		testkit.WantCode(t, pull(nil), codes.Unauthenticated, "private:1")
		err := pull(&cri.AuthConfig{Username: "robot", Password: "wr0ng"})
		testkit.WantCode(t, err, codes.PermissionDenied, "private:1")
		if strings.Contains(err.Error(), "wr0ng") {
			t.Errorf("the error shows the password: %v", err)
		}
		if err := pull(&cri.AuthConfig{Username: "robot", Password: "s3cr3t"}); err != nil {
			t.Error(err)
		}
		removeImage(t, c, private.Ref("private:1"))
	})
}

func TestPullErrors(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		for ref, code := range map[string]codes.Code{
			"":                              codes.InvalidArgument,
			"Not/A/Reference":               codes.InvalidArgument,
			registry.Ref("x@sha256:123"):    codes.InvalidArgument,
			registry.Ref("no-such-image:1"): codes.NotFound,
			registry.Ref("busybox:no-tag"):  codes.NotFound,
			"127.0.0.1:1/nobody/listens:1":  codes.Unavailable,
			registry.Ref("busybox@sha256:" + strings.Repeat("0", 64)): codes.NotFound,
		} {
			_, err := c.Pull(t.Context(), ref)
			if code == codes.Unavailable { // any code that is retried
				if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
					t.Errorf("%s: %v", ref, err)
				}
				continue
			}
			testkit.WantCode(t, err, code)
		}
		_, err := c.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: spec("")})
		testkit.WantCode(t, err, codes.InvalidArgument, "image")
		_, err = c.RemoveImage(t.Context(), &cri.RemoveImageRequest{})
		testkit.WantCode(t, err, codes.InvalidArgument, "image")
	})
}

func TestParallelPullsShareOneDownload(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ref, img := pushed(t, testkit.ImageOptions{Blobs: []int64{200_000}})
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		layer, err := layers[len(layers)-1].Digest()
		if err != nil {
			t.Fatal(err)
		}
		removeImage(t, c, ref)
		registry.Fail(registrytest.Fault{Match: layer.String(), Delay: 100 * time.Millisecond, Times: 1})
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				if _, err := c.Pull(t.Context(), ref); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := registry.Requests(http.MethodGet, layer.String()); n != 1 {
			t.Errorf("%d downloads", n)
		}
	})
}

func TestRemovedImageOfARunningContainer(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ref := image(t, c, testkit.ImageOptions{Files: map[string]string{"file": "still there\n"}})
		p := c.Pod(t)
		ctr := p.Container(t, ref, []string{"sleep", "1000"})
		if _, err := c.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: spec(ref)}); err != nil {
			t.Fatal(err)
		}
		if got := ctr.Exec(t, "cat", "/file"); got != "still there\n" {
			t.Errorf("got %q", got)
		}
		if s := ctr.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING || s.ImageRef == "" {
			t.Errorf("status: %v", s)
		}
		_, err := p.Create(t.Context(), testkit.ContainerConfig(ref, []string{"true"}))
		testkit.WantCode(t, err, codes.NotFound, ref)
	})
}

func TestContainerByAnyNameOfTheImage(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		s, err := c.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: spec(busybox)})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{busybox, busyboxID, s.Image.RepoDigests[0]} {
			if got := p.Output(t, name, []string{"echo", "ok"}); got != "ok\n" {
				t.Errorf("%s: %q", name, got)
			}
		}
	})
}

func TestImageFsInfo(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		got, err := c.ImageFsInfo(t.Context(), &cri.ImageFsInfoRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if len(got.ImageFilesystems) != 1 {
			t.Fatalf("got %v", got)
		}
		fs := got.ImageFilesystems[0]
		if fs.UsedBytes.GetValue() < 1_000_000 || fs.InodesUsed.GetValue() < 100 || fs.Timestamp == 0 {
			t.Errorf("got %v", fs)
		}
		if _, err := os.Stat(fs.FsId.GetMountpoint()); err != nil {
			t.Error(err)
		}
	})
}
