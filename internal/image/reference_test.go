package image

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const someDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParseReference(t *testing.T) {
	for ref, want := range map[string]string{
		"busybox":                          "docker.io/library/busybox:latest",
		"busybox:1":                        "docker.io/library/busybox:1",
		"team/app":                         "docker.io/team/app:latest",
		"localhost:5000/app":               "localhost:5000/app:latest",
		"quay.io/a/b:v1":                   "quay.io/a/b:v1",
		"quay.io/a/b@" + someDigest:        "quay.io/a/b@" + someDigest,
		"quay.io/a/b:v1@" + someDigest:     "quay.io/a/b@" + someDigest,
		"[::1]:5000/app:1":                 "[::1]:5000/app:1",
		"":                                 "",
		" busybox":                         "",
		"busybox:":                         "",
		"Busybox":                          "",
		"a//b":                             "",
		"a@sha256:12":                      "",
		"a@md5:0123456789abcdef0123456789": "",
		"http://quay.io/a/b":               "",
		strings.Repeat("a", 300):           "",
	} {
		got, err := parseReference(ref)
		if want == "" {
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "image.image") {
				t.Errorf("%q: %v, %v", ref, got, err)
			}
			continue
		}
		if err != nil || got.String() != want {
			t.Errorf("%q: %v, %v", ref, got, err)
		}
	}
}

func TestRecordNames(t *testing.T) {
	for ref, want := range map[string][]string{
		"q.io/a:1":             {"q.io/a:1", "q.io/a@" + someDigest, "id"},
		"q.io/a@" + someDigest: {"q.io/a@" + someDigest, "id"},
	} {
		named, err := parseReference(ref)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, recordNames(named, digest.Digest(someDigest), "id")); diff != "" {
			t.Errorf("%s: %s", ref, diff)
		}
	}
}

func TestTagsAndDigests(t *testing.T) {
	tags, digests := tagsAndDigests([]string{someDigest, "q.io/b:2", "q.io/a:1", "q.io/a@" + someDigest, "not a reference", "q.io/a:1@" + someDigest})
	if diff := cmp.Diff([]string{"q.io/a:1", "q.io/b:2"}, tags); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"q.io/a:1@" + someDigest, "q.io/a@" + someDigest}, digests); diff != "" {
		t.Error(diff)
	}
}

func TestDecodeAuth(t *testing.T) {
	for _, tc := range []struct{ in, user, secret string }{
		{"dTpw", "u", "p"},
		{"dTpwOnE=", "u", "p:q"},
		{"dTpwOnE", "u", "p:q"},
		{"dTpwAAA=", "u", "p"}, // NULs of old docker
		{"dTo=", "u", ""},
		{in: "dXA="}, // no colon
		{in: "%%%"},
	} {
		user, secret, err := decodeAuth(tc.in)
		if user != tc.user || secret != tc.secret || (err == nil) != (tc.user != "") {
			t.Errorf("%q: %q, %q, %v", tc.in, user, secret, err)
		}
	}
}

func TestServerHost(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "quay.io": "quay.io", "https://quay.io/v2/": "quay.io", "localhost:5000": "localhost:5000",
		"https://index.docker.io/v1/": "docker.io", "http://[::1]:5000": "[::1]:5000",
	} {
		if got, err := serverHost(in); got != want || err != nil {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	if _, err := serverHost("https://"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("err = %v", err)
	}
}

func TestUserOf(t *testing.T) {
	for in, want := range map[string]string{"": "", "1000": "1000", "1000:1": "1000", "dev": "dev", "dev:wheel": "dev", "0": "0"} {
		uid, name := userOf(in)
		got := name
		if uid != nil {
			got = strings.TrimPrefix(uid.String(), "value:")
			if uid.Value == 0 {
				got = "0"
			}
		}
		if got != want {
			t.Errorf("%q: %v, %q", in, uid, name)
		}
	}
}

func TestPins(t *testing.T) {
	pins, err := parsePins([]string{"busy*", "quay.io/a/pause:3"})
	if err != nil {
		t.Fatal(err)
	}
	s := &Store{pins: pins}
	for name, want := range map[string]bool{
		"docker.io/library/busybox:1": true, "quay.io/a/pause:3": true, "quay.io/a/pause:4": false, "quay.io/busybox:1": false,
	} {
		if s.pinned(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
	if _, err := parsePins([]string{"Bad Name"}); err == nil || !strings.Contains(err.Error(), "registry.pinned") {
		t.Errorf("err = %v", err)
	}
}

func TestScrub(t *testing.T) {
	err := scrub(errdefs.ErrNotFound.WithMessage(`Get "https://cdn.test/blob?X-Signature=secret&y=1": EOF`))
	if strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "https://cdn.test/blob") || !errdefs.IsNotFound(err) {
		t.Errorf("%v", err)
	}
}

func FuzzParseReference(f *testing.F) {
	for _, seed := range []string{"busybox", "q.io/a:1@" + someDigest, "[::1]:5/a", "a/b/c:d@e", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		named, err := parseReference(ref)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v", ref, err)
			}
			return
		}
		again, err := parseReference(named.String())
		if err != nil || again.String() != named.String() {
			t.Errorf("%q is %q is %v, %v", ref, named, again, err)
		}
	})
}

func FuzzParseAuth(f *testing.F) {
	f.Add("u", "p", "dTpw", "quay.io")
	f.Fuzz(func(t *testing.T, user, secret, auth, server string) {
		c, err := parseAuth(&runtime.AuthConfig{Username: user, Password: secret, Auth: auth, ServerAddress: server})
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
		if c.String() != "credentials" || c.GoString() != "credentials" {
			t.Error("credentials show themselves")
		}
	})
}
