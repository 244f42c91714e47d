package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"berth/internal/testkit"
	"berth/internal/testkit/registrytest"
)

// tarLayer is a layer of entries: "name" with text, "name/" with mode, and
// "name" with "->target".
func tarLayer(t *testing.T, entries ...[2]string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e[0], Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(e[1]))}
		text := e[1]
		if target, ok := strings.CutPrefix(e[1], "->"); ok {
			h.Typeflag, h.Linkname, h.Size, text = tar.TypeSymlink, target, 0, ""
		} else if strings.HasSuffix(e[0], "/") {
			h.Typeflag, h.Size, text = tar.TypeDir, 0, ""
			if _, err := fmt.Sscanf(e[1], "%o", &h.Mode); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// zstdLayer is a layer whose blob is not gzip.
type zstdLayer struct {
	v1.Layer
	diffID v1.Hash
}

func (l zstdLayer) DiffID() (v1.Hash, error) { return l.diffID, nil }

func layerImage(t *testing.T, tars ...[]byte) v1.Image {
	t.Helper()
	img := newImage(t, testkit.ImageOptions{})
	for i, data := range tars {
		var l v1.Layer
		var err error
		switch i % 3 {
		case 0:
			l, err = gzipLayer(data)
		case 1:
			l = static.NewLayer(data, types.OCIUncompressedLayer)
		case 2:
			z, _ := zstd.NewWriter(nil)
			var id v1.Hash
			id, _, err = v1.SHA256(bytes.NewReader(data))
			l = zstdLayer{static.NewLayer(z.EncodeAll(data, nil), types.OCILayerZStd), id}
		}
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

// mounted is the image's tree as text.
func mounted(t *testing.T, s *Store, ref string) string {
	t.Helper()
	img, err := s.Get(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	sn, ctx, key := kit.Client().SnapshotService("overlayfs"), kit.Context(context.Background()), t.Name()
	mounts, err := sn.View(ctx, key, img.ChainID)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	err = mount.WithReadonlyTempMount(ctx, mounts, func(root string) error {
		return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			rel, _ := filepath.Rel(root, path)
			st := info.Sys().(*syscall.Stat_t)
			fmt.Fprintf(&b, "%s %v %d:%d", rel, info.Mode(), st.Uid, st.Gid)
			if info.Mode().IsRegular() && info.Size() < 1000 {
				text, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				fmt.Fprintf(&b, " %q", text)
			}
			b.WriteByte('\n')
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := sn.Remove(ctx, key); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Layers unpacked in any order make the image that containerd makes in order.
func TestStreamedImageIsTheSame(t *testing.T) {
	lower := tarLayer(t, [2]string{"tmp/", "1777"}, [2]string{"a/", "711"}, [2]string{"a/gone", "x"}, [2]string{"a/kept", "k"},
		[2]string{"opaque/", "750"}, [2]string{"opaque/hidden", "h"}, [2]string{"dir/", "755"}, [2]string{"dir/x", "x"}, [2]string{"file", "f"}, [2]string{"lib", "->usr/lib"})
	middle := tarLayer(t, [2]string{"a/.wh.gone", ""}, [2]string{"opaque/", "700"}, [2]string{"opaque/.wh..wh..opq", ""}, [2]string{"opaque/new", "n"},
		[2]string{"tmp/without/entry", "t"}, [2]string{".wh.dir", ""}, [2]string{"file/", "755"}, [2]string{"file/x", "now below"})
	upper := tarLayer(t, [2]string{"dir/", "700"}, [2]string{"dir/back", "b"}, [2]string{"a/.wh.kept", ""}, [2]string{"tmp/again", "t"}, [2]string{"tmp/without/more", "m"})
	tars := [][]byte{lower, middle, upper, lower, middle, upper, upper}
	var trees [2]string
	for i := range trees {
		r := registrytest.Own(t)
		s := newStore(t, func(o *Options) { o.InProcess = i == 1 }, "")
		push(t, r, "app:1", layerImage(t, tars...))
		id := mustPull(t, s, r.Ref("app:1"))
		trees[i] = mounted(t, s, id)
		if err := s.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		wantGone(t, "snapshot")
	}
	if diff := cmp.Diff(trees[0], trees[1]); diff != "" {
		t.Error(diff)
	}
	for _, want := range []string{"tmp dtrwxrwxrwx", "opaque/new", "tmp/without/more", `dir/back -rw-r--r-- 0:0 "b"`} {
		if !strings.Contains(trees[1], want) {
			t.Errorf("no %q in %s", want, trees[1])
		}
	}
}

// lying is a layer that unpacks to something else than it says.
type lying struct{ v1.Layer }

func (lying) DiffID() (v1.Hash, error) {
	return v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("ab", 32)}, nil
}

func TestBadLayersLeaveNothing(t *testing.T) {
	good := tarLayer(t, [2]string{"x", "x"})
	gz, err := gzipLayer(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		layer v1.Layer
		text  string
	}{
		"another diff ID": {lying{gz}, "unpacks to digest"},
		"no tar":          {static.NewLayer(bytes.Repeat([]byte("no tar"), 1000), types.OCIUncompressedLayer), "invalid tar header"},
		"no gzip":         {zstdLayer{static.NewLayer([]byte("\x1f\x8b\x08 but no more"), types.OCILayer), v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("cd", 32)}}, "layer"},
		"cut tar":         {static.NewLayer(good[:512], types.OCIUncompressedLayer), "unexpected EOF"},
		"two roots up":    {static.NewLayer(tarLayer(t, [2]string{"l", "->l/l"}, [2]string{"l/x", "x"}), types.OCIUncompressedLayer), "too many levels"},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := registrytest.Own(t), newStore(t, nil, "")
			img, err := mutate.AppendLayers(newImage(t, testkit.ImageOptions{Blobs: []int64{200_000}}), tc.layer)
			if err != nil {
				t.Fatal(err)
			}
			if img, err = mutate.AppendLayers(img, gz); err != nil { // one that waits for the bad one
				t.Fatal(err)
			}
			push(t, r, "app:1", img)
			_, err = s.Pull(t.Context(), pullRequest(r.Ref("app:1")))
			if err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("err = %v, want one with %q", err, tc.text)
			}
			wantGone(t, "snapshot")
			wantGone(t, "content")
			wantGone(t, "lease")
		})
	}
}

// Images with the same layers in other places, at once.
func TestStreamsShareLayers(t *testing.T) {
	r, s := registrytest.Own(t), newStore(t, func(o *Options) { o.MaxConcurrentDownloads = 2 }, "")
	var tars [][]byte
	for i := range 5 {
		tars = append(tars, tarLayer(t, [2]string{fmt.Sprintf("f%d", i), strings.Repeat("x", 50_000)}))
	}
	var refs []string
	for i, order := range [][]int{{0, 1, 2, 3, 4}, {0, 1, 2, 4, 3}, {0, 0, 1, 1, 0}, {4, 3, 2, 1, 0}} {
		img := newImage(t, testkit.ImageOptions{})
		for _, n := range order {
			l, err := gzipLayer(tars[n])
			if err != nil {
				t.Fatal(err)
			}
			if img, err = mutate.AppendLayers(img, l); err != nil {
				t.Fatal(err)
			}
		}
		repo := fmt.Sprintf("app:%d", i)
		push(t, r, repo, img)
		refs = append(refs, r.Ref(repo))
	}
	var wg sync.WaitGroup
	for _, ref := range refs {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), pullRequest(ref)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := r.Requests(http.MethodGet, "/blobs/"); n != 5+1+4 {
		t.Errorf("%d blobs were downloaded, want 6 layers and 4 configurations", n)
	}
	for _, ref := range refs {
		if err := s.Remove(t.Context(), ref); err != nil {
			t.Error(err)
		}
	}
	wantGone(t, "snapshot")
}
