package registrytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"berth/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m, nil) }

func TestFaults(t *testing.T) {
	img, err := testkit.Image(testkit.ImageOptions{Empty: true, Blobs: []int64{50_000}})
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	size, err := layers[0].Size()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		fault  Fault
		status int
		bytes  int64
		err    error
	}{
		{name: "none", status: 200, bytes: size},
		{name: "status", fault: Fault{Status: 503}, status: 503, bytes: -1},
		{name: "cut", fault: Fault{CutAfter: 20_000}, status: 200, bytes: 20_000, err: io.ErrUnexpectedEOF},
		{name: "hang", fault: Fault{HangAfter: 20_000}, status: 200, bytes: 20_000, err: context.DeadlineExceeded},
		{name: "slow", fault: Fault{BytesPerMS: 1000}, status: 200, bytes: size},
		{name: "another path", fault: Fault{Match: "/manifests/", Status: 503}, status: 200, bytes: size},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := New()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close() //nolint:errcheck // always nil
			if _, err := r.Push("a:1", img); err != nil {
				t.Fatal(err)
			}
			r.Fail(tc.fault)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			url := fmt.Sprintf("http://%s/v2/a/blobs/%s", r.Host, digest)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close() //nolint:errcheck // only read
			n, err := io.Copy(io.Discard, resp.Body)
			if resp.StatusCode != tc.status || tc.bytes >= 0 && n != tc.bytes || !errors.Is(err, tc.err) {
				t.Errorf("status %d, %d bytes, %v", resp.StatusCode, n, err)
			}
			if got := r.Requests(http.MethodGet, digest.String()); got != 1 {
				t.Errorf("%d requests counted", got)
			}
		})
	}
}

func TestAuth(t *testing.T) {
	r, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // always nil
	img, err := testkit.Image(testkit.ImageOptions{Empty: true, Blobs: []int64{10}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Push("a:1", img); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(r.Ref("a:1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, require := range []func(string, string){r.RequireBasic, r.RequireToken} {
		require("u", "p")
		if _, err := remote.Head(ref); err == nil {
			t.Error("anonymous was let in")
		}
		r.Heal()
		if _, err := remote.Head(ref); err != nil {
			t.Error(err)
		}
	}
}
