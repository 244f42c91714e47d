package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
	"berth/internal/testkit/registrytest"
)

func TestPullByTagAndDigest(t *testing.T) {
	r, s := registrytest.Own(t), newStore(t, nil, "")
	img := newImage(t, testkit.ImageOptions{User: "dev:wheel", Entrypoint: []string{"/bin/true"}})
	byDigest := push(t, r, "app:v1", img)
	for _, tc := range []struct {
		name, ref string
		tags      []string
	}{
		{"tag", r.Ref("app:v1"), []string{r.Ref("app:v1")}},
		{"digest", byDigest, nil},
		{"of tag and digest the digest counts", strings.Replace(byDigest, "@", ":v9@", 1), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id := mustPull(t, s, tc.ref)
			if want := testkit.ID(img); id != want {
				t.Errorf("id %s, want the config's digest %s", id, want)
			}
			got, err := s.Get(t.Context(), tc.ref)
			if err != nil {
				t.Fatal(err)
			}
			want := &runtime.Image{
				Id: id, RepoTags: tc.tags, RepoDigests: []string{byDigest}, Username: "dev",
				Size: got.Proto.Size, Spec: &runtime.ImageSpec{Image: id},
			}
			if diff := cmp.Diff(want, got.Proto, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
			if got.Proto.Size < 1000 {
				t.Errorf("size %d", got.Proto.Size)
			}
			if diff := cmp.Diff([]string{"/bin/true"}, got.Config.Entrypoint); diff != "" {
				t.Error(diff)
			}
			if _, err := kit.Client().SnapshotService("overlayfs").Stat(kit.Context(t.Context()), got.ChainID); err != nil {
				t.Errorf("not unpacked: %v", err)
			}
			if err := s.Unpack(t.Context(), got); err != nil {
				t.Error(err)
			}
			if err := s.Remove(t.Context(), tc.ref); err != nil {
				t.Fatal(err)
			}
			wantGone(t, layerOf(t, img))
			if _, err := s.Get(t.Context(), id); !errdefs.IsNotFound(err) {
				t.Errorf("after removal: %v", err)
			}
		})
	}
}

func TestPullOfIndexTakesThisPlatform(t *testing.T) {
	r, s := registrytest.Own(t), newStore(t, nil, "")
	img := newImage(t, testkit.ImageOptions{User: "7"})
	idx, err := testkit.Index(img)
	if err != nil {
		t.Fatal(err)
	}
	byDigest, err := r.PushIndex("multi:1", idx)
	if err != nil {
		t.Fatal(err)
	}
	if id := mustPull(t, s, r.Ref("multi:1")); id != testkit.ID(img) {
		t.Errorf("id %s, want %s", id, testkit.ID(img))
	}
	got, err := s.Get(t.Context(), byDigest)
	if err != nil {
		t.Fatal(err)
	}
	if got.Proto.Uid.GetValue() != 7 || got.Proto.Username != "" {
		t.Errorf("user: %v", got.Proto)
	}
}

func TestOneImageUnderTwoNames(t *testing.T) {
	for _, by := range []string{"one", "two", "digest", "id", "prefix"} {
		t.Run(by, func(t *testing.T) {
			r, s := registrytest.Own(t), newStore(t, nil, "")
			img := newImage(t, testkit.ImageOptions{})
			one := push(t, r, "one:1", img)
			two := push(t, r, "two:2", img)
			id := mustPull(t, s, r.Ref("one:1"))
			if again := mustPull(t, s, r.Ref("two:2")); again != id {
				t.Fatalf("two ids: %s, %s", id, again)
			}
			got, err := s.Get(t.Context(), id[:20])
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{r.Ref("one:1"), r.Ref("two:2")}, got.Proto.RepoTags); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{one, two}, got.Proto.RepoDigests); diff != "" {
				t.Error(diff)
			}
			ref := map[string]string{"one": r.Ref("one:1"), "two": r.Ref("two:2"), "digest": two, "id": id, "prefix": id[7:20]}[by]
			if err := s.Remove(t.Context(), ref); err != nil {
				t.Fatal(err)
			}
			wantGone(t, r.Host)
			wantGone(t, layerOf(t, img))
			if err := s.Remove(t.Context(), ref); err != nil {
				t.Errorf("removed twice: %v", err)
			}
		})
	}
}

func TestATagMoves(t *testing.T) {
	r, s := registrytest.Own(t), newStore(t, nil, "")
	older := newImage(t, testkit.ImageOptions{Salt: "old"})
	newer := newImage(t, testkit.ImageOptions{Salt: "new", Blobs: []int64{2000}})
	push(t, r, "app:latest", older)
	oldID := mustPull(t, s, r.Ref("app"))
	push(t, r, "app:latest", newer)
	newID := mustPull(t, s, r.Ref("app"))
	if oldID == newID {
		t.Fatal("the tag did not move")
	}
	got, err := s.Get(t.Context(), r.Ref("app:latest"))
	if err != nil || got.ID != newID {
		t.Errorf("the tag is %v, %v", got, err)
	}
	got, err = s.Get(t.Context(), oldID)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Proto.RepoTags) != 0 || len(got.Proto.RepoDigests) != 1 {
		t.Errorf("the older image: %v", got.Proto)
	}
}

func TestPullAuth(t *testing.T) {
	const user, password = "robot", "s3cr3t-p4ss"
	encoded := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	for _, tc := range []struct {
		name  string
		token bool // a token service instead of basic auth
		auth  *runtime.AuthConfig
		want  error
	}{
		{name: "basic, user and password", auth: &runtime.AuthConfig{Username: user, Password: password}},
		{name: "basic, auth", auth: &runtime.AuthConfig{Auth: encoded}},
		{name: "basic, none", want: errdefs.ErrUnauthenticated},
		{name: "basic, wrong", auth: &runtime.AuthConfig{Username: user, Password: "wr0ng-p4ss"}, want: errdefs.ErrPermissionDenied},
		{name: "basic, for another host", auth: &runtime.AuthConfig{Username: user, Password: password, ServerAddress: "https://other.test/v1"}, want: errdefs.ErrPermissionDenied},
		{name: "basic, for this host", auth: &runtime.AuthConfig{Username: user, Password: password, ServerAddress: "HOST"}},
		{name: "token, user and password", token: true, auth: &runtime.AuthConfig{Username: user, Password: password}},
		{name: "token, auth", token: true, auth: &runtime.AuthConfig{Auth: strings.TrimRight(encoded, "=")}},
		{name: "token, identity", token: true, auth: &runtime.AuthConfig{IdentityToken: password}},
		{name: "token, registry token", token: true, auth: &runtime.AuthConfig{RegistryToken: "token-of-" + user}},
		{name: "token, none", token: true, want: errdefs.ErrUnauthenticated},
		{name: "token, wrong", token: true, auth: &runtime.AuthConfig{Username: user, Password: "wr0ng-p4ss"}, want: errdefs.ErrPermissionDenied},
		{name: "token, wrong registry token", token: true, auth: &runtime.AuthConfig{RegistryToken: "wr0ng-p4ss"}, want: errdefs.ErrPermissionDenied},
		{name: "auth is no base64", auth: &runtime.AuthConfig{Auth: "!!s3cr3t-p4ss"}, want: errdefs.ErrInvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, s := registrytest.Own(t), newStore(t, nil, "")
			img := newImage(t, testkit.ImageOptions{})
			push(t, r, "private:1", img)
			if tc.token {
				r.RequireToken(user, password)
			} else {
				r.RequireBasic(user, password)
			}
			req := pullRequest(r.Ref("private:1"))
			req.Auth = tc.auth
			if req.Auth.GetServerAddress() == "HOST" {
				req.Auth.ServerAddress = r.Host
			}
			id, err := s.Pull(t.Context(), req)
			if !errors.Is(err, tc.want) {
				t.Fatalf("err = %v, want %v", err, tc.want)
			}
			if err != nil {
				for _, secret := range []string{password, "wr0ng-p4ss", encoded} {
					if strings.Contains(err.Error(), secret) {
						t.Errorf("the error shows a secret: %v", err)
					}
				}
				wantGone(t, layerOf(t, img))
				return
			}
			if err := s.Remove(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCredentialsStayWithTheirHost(t *testing.T) {
	r, mirror := registrytest.Own(t), registrytest.Own(t)
	dir := t.TempDir()
	writeHosts(t, dir, r.Host, fmt.Sprintf("[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror.Host))
	s := newStore(t, func(o *Options) { o.RegistryDirs = []string{dir} }, "")
	img := newImage(t, testkit.ImageOptions{})
	push(t, r, "private:1", img)
	r.RequireToken("robot", "s3cr3t")
	mirror.RequireBasic("other", "other") // it asks, and is to get nothing
	req := pullRequest(r.Ref("private:1"))
	req.Auth = &runtime.AuthConfig{RegistryToken: r.Token()}
	id, err := s.Pull(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if mirror.Requests(http.MethodHead, "private") == 0 {
		t.Error("the mirror was not asked")
	}
	if seen := mirror.Authorizations(); len(seen) > 0 {
		t.Errorf("the mirror saw %q", seen)
	}
	if err := s.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
}

func writeHosts(t *testing.T, dir, host, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, host), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, host, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestMirrors(t *testing.T) {
	mirror := registrytest.Own(t)
	first, second := t.TempDir(), t.TempDir()
	text := fmt.Sprintf("server = \"http://127.0.0.1:1\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"http://%s\"]\n", mirror.Host)
	writeHosts(t, second, "upstream.test", text)
	s := newStore(t, func(o *Options) { o.RegistryDirs = []string{first, second} }, "")
	img := newImage(t, testkit.ImageOptions{})
	push(t, mirror, "team/app:1", img)
	id := mustPull(t, s, "upstream.test/team/app:1")
	got, err := s.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"upstream.test/team/app:1"}, got.Proto.RepoTags); diff != "" {
		t.Error(diff)
	}
}

func TestBrokenHostsFileIsNamed(t *testing.T) {
	dir := t.TempDir()
	writeHosts(t, dir, "upstream.test", "server = [not toml")
	s := newStore(t, func(o *Options) { o.RegistryDirs = []string{dir} }, "")
	_, err := s.Pull(t.Context(), pullRequest("upstream.test/app:1"))
	if err == nil || !strings.Contains(err.Error(), "upstream.test") {
		t.Errorf("err = %v", err)
	}
}

type pullFault struct {
	name  string
	fault registrytest.Fault // Match "layer" is replaced by the layer's digest
	want  error              // nil: the pull succeeds in spite of it
	text  string
}

func TestPullFaults(t *testing.T) {
	for _, tc := range []pullFault{
		{name: "blob cut once", fault: registrytest.Fault{Match: "layer", CutAfter: 30_000, Times: 1}},
		{name: "blob cut, and the registry is gone", fault: registrytest.Fault{Match: "layer", CutAfter: 30_000, Times: 1, Then: 503}, text: "unexpected EOF"},
		{name: "blob hangs", fault: registrytest.Fault{Match: "layer", HangAfter: 30_000}, want: context.DeadlineExceeded, text: "no progress"},
		{name: "blob hangs at once", fault: registrytest.Fault{Match: "layer", Delay: time.Hour}, want: context.DeadlineExceeded, text: "no progress"},
		{name: "manifest hangs", fault: registrytest.Fault{Match: "/manifests/", Delay: time.Hour}, want: context.DeadlineExceeded, text: "no progress"},
		{name: "blob corrupt", fault: registrytest.Fault{Match: "layer", Corrupt: true}, text: "digest"},
		{name: "manifest 500", fault: registrytest.Fault{Match: "/manifests/", Status: 500}, want: errdefs.ErrUnavailable, text: "try again"},
		{name: "blob 503", fault: registrytest.Fault{Match: "layer", Status: 503}, want: errdefs.ErrUnavailable},
		{name: "blob 503 once", fault: registrytest.Fault{Match: "layer", Status: 503, Times: 1}},
		{name: "blob 404", fault: registrytest.Fault{Match: "layer", Status: 404}, want: errdefs.ErrNotFound},
		{name: "manifest 404", fault: registrytest.Fault{Match: "/manifests/", Status: 404}, want: errdefs.ErrNotFound, text: "not found at 127.0.0.1"},
		{name: "manifest 429", fault: registrytest.Fault{Match: "/manifests/", Status: 429}, want: errdefs.ErrResourceExhausted, text: "rate"},
		{name: "manifest 403", fault: registrytest.Fault{Match: "/manifests/", Status: 403}, want: errdefs.ErrPermissionDenied, text: "access denied"},
		{name: "slow, but there is progress", fault: registrytest.Fault{Match: "layer", BytesPerMS: 100}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			testPullFault(t, tc, true)
		})
		t.Run(tc.name+", unpacked by containerd", func(t *testing.T) {
			t.Parallel()
			testPullFault(t, tc, false)
		})
	}
}

func testPullFault(t *testing.T, tc pullFault, inProcess bool) {
	r := registrytest.Own(t)
	s := newStore(t, func(o *Options) { o.ProgressTimeout = 400 * time.Millisecond; o.InProcess = inProcess }, "")
	img := newImage(t, testkit.ImageOptions{Blobs: []int64{100_000}})
	push(t, r, "app:1", img)
	if tc.fault.Match == "layer" {
		tc.fault.Match = layerOf(t, img)
	}
	r.Fail(tc.fault)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := s.Pull(ctx, pullRequest(r.Ref("app:1")))
	succeeds := tc.want == nil && tc.text == ""
	if succeeds != (err == nil) || tc.want != nil && !errors.Is(err, tc.want) || err != nil && !strings.Contains(err.Error(), tc.text) {
		t.Fatalf("err = %v, want %v with %q", err, tc.want, tc.text)
	}
	if ctx.Err() != nil {
		t.Fatal("it hung")
	}
	if err != nil {
		if !strings.Contains(err.Error(), r.Ref("app:1")) {
			t.Errorf("the error does not name the image: %v", err)
		}
		wantGone(t, layerOf(t, img))
		wantGone(t, pullLease(r.Ref("app:1")))
	}
	r.Heal()
	mustPull(t, s, r.Ref("app:1"))
}

func TestParallelPullsShareOneDownload(t *testing.T) {
	r, s := registrytest.Own(t), newStore(t, nil, "")
	img := newImage(t, testkit.ImageOptions{Blobs: []int64{100_000}})
	push(t, r, "app:1", img)
	r.Fail(registrytest.Fault{Match: layerOf(t, img), Delay: 50 * time.Millisecond})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), pullRequest(r.Ref("app:1"))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := r.Requests(http.MethodGet, layerOf(t, img)); n != 1 {
		t.Errorf("the layer was downloaded %d times", n)
	}
	if n := r.Requests(http.MethodHead, "/manifests/1"); n != 1 {
		t.Errorf("the tag was resolved %d times", n)
	}
	if err := s.Remove(t.Context(), r.Ref("app:1")); err != nil {
		t.Error(err)
	}
}

// Two references share their layers' download.
func TestParallelPullsOfTwoTagsShareLayers(t *testing.T) {
	r, s := registrytest.Own(t), newStore(t, nil, "")
	img := newImage(t, testkit.ImageOptions{Blobs: []int64{100_000}})
	push(t, r, "app:1", img)
	push(t, r, "app:2", img)
	r.Fail(registrytest.Fault{Match: layerOf(t, img), Delay: 50 * time.Millisecond})
	var wg sync.WaitGroup
	for _, tag := range []string{"app:1", "app:2"} {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), pullRequest(r.Ref(tag))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := r.Requests(http.MethodGet, layerOf(t, img)); n != 1 {
		t.Errorf("the layer was downloaded %d times", n)
	}
	if err := s.Remove(t.Context(), r.Ref("app:1")); err != nil {
		t.Error(err)
	}
}

func TestACallerGivesUp(t *testing.T) {
	r, s := registrytest.Own(t), newStore(t, nil, "")
	img := newImage(t, testkit.ImageOptions{})
	push(t, r, "app:1", img)
	r.Fail(registrytest.Fault{Match: layerOf(t, img), Delay: 300 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := s.Pull(ctx, pullRequest(r.Ref("app:1"))); !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v", err)
		}
	})
	testkit.Until(t, 5*time.Second, func(context.Context) string {
		if r.Requests(http.MethodGet, layerOf(t, img)) == 0 {
			return "the download has not begun"
		}
		return ""
	})
	cancel()
	wg.Wait()
	mustPull(t, s, r.Ref("app:1"))
	if n := r.Requests(http.MethodGet, layerOf(t, img)); n != 1 {
		t.Errorf("the retry did not join: %d downloads", n)
	}
}

func TestAnAbandonedPullEnds(t *testing.T) {
	r := registrytest.Own(t)
	s := newStore(t, func(o *Options) { o.AbandonAfter = 20 * time.Millisecond }, "")
	img := newImage(t, testkit.ImageOptions{})
	push(t, r, "app:1", img)
	r.Fail(registrytest.Fault{Match: layerOf(t, img), Delay: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Pull(ctx, pullRequest(r.Ref("app:1"))); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err = %v", err)
	}
	wantGone(t, pullLease(r.Ref("app:1")))
	r.Heal()
	mustPull(t, s, r.Ref("app:1"))
}

func TestCloseEndsPulls(t *testing.T) {
	r, s := registrytest.Own(t), newStore(t, nil, "")
	img := newImage(t, testkit.ImageOptions{})
	push(t, r, "app:1", img)
	r.Fail(registrytest.Fault{Match: layerOf(t, img), Delay: time.Hour})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := s.Pull(t.Context(), pullRequest(r.Ref("app:1"))); err == nil {
			t.Error("the pull succeeded")
		}
	})
	testkit.Until(t, 5*time.Second, func(context.Context) string {
		if r.Requests(http.MethodGet, layerOf(t, img)) == 0 {
			return "the download has not begun"
		}
		return ""
	})
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if _, err := s.Pull(t.Context(), pullRequest(r.Ref("app:1"))); !errdefs.IsUnavailable(err) {
		t.Errorf("after Close: %v", err)
	}
	wantGone(t, pullLease(r.Ref("app:1")))
}

func TestPullProgress(t *testing.T) {
	r, s := registrytest.Own(t), newStore(t, nil, "")
	img := newImage(t, testkit.ImageOptions{Blobs: []int64{400_000}})
	push(t, r, "app:1", img)
	r.Fail(registrytest.Fault{Match: layerOf(t, img), BytesPerMS: 1000})
	last := map[string]Progress{}
	moved := false
	req := pullRequest(r.Ref("app:1"))
	req.Progress = func(p Progress) {
		if before := last[p.Digest]; p.Offset < before.Offset || p.Offset > p.Total {
			t.Errorf("went from %+v to %+v", before, p)
		}
		moved = moved || p.Digest == layerOf(t, img) && p.Status == Downloading && p.Offset > 0
		last[p.Digest] = p
	}
	id, err := s.Pull(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if !moved {
		t.Error("no report in the middle of the layer")
	}
	if got := last[layerOf(t, img)]; got.Status != Downloaded || got.Offset != got.Total || got.Total < 400_000 {
		t.Errorf("the layer ended as %+v", got)
	}
	if got := last[""]; got.Status != Done || got.ImageID != id {
		t.Errorf("the image ended as %+v", got)
	}
	if err := s.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
}

func TestEachStepMayFail(t *testing.T) {
	for _, step := range []string{"PullImage/lease", "PullImage/fetch", "PullImage/record", "PullImage/release", "RemoveImage/names", "RemoveImage/content"} {
		for _, when := range []string{"", ":after"} {
			t.Run(step+when, func(t *testing.T) {
				r, s := registrytest.Own(t), newStore(t, nil, step+when+"=error")
				img := newImage(t, testkit.ImageOptions{})
				push(t, r, "app:1", img)
				failed := 0
				try := func(what func() error) {
					for range 2 {
						err := what()
						if err == nil {
							return
						}
						failed++
						t.Log(err)
					}
					t.Error("failed twice")
				}
				try(func() error { _, err := s.Pull(t.Context(), pullRequest(r.Ref("app:1"))); return err })
				if _, err := s.Get(t.Context(), r.Ref("app:1")); err != nil {
					t.Error(err)
				}
				try(func() error { return s.Remove(t.Context(), r.Ref("app:1")) })
				if failed != 1 {
					t.Errorf("%d failures", failed)
				}
				wantGone(t, layerOf(t, img))
				wantGone(t, r.Host)
				wantGone(t, "berth-pull")
			})
		}
	}
}
