package testkit

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The users and groups of every image: dev is in two more groups than its own.
const (
	Passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/:/bin/false
dev:x:1000:1000:dev:/home/dev:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
`
	Group = `root:x:0:
daemon:x:1:
dev:x:1000:
wheel:x:10:dev
video:x:44:dev,daemon
nogroup:x:65534:
`
)

// ImageOptions say how an image differs from the plain busybox one. The zero
// value is that one: no entrypoint, Cmd "sh", PATH and HOME-less root.
type ImageOptions struct {
	Entrypoint, Cmd, Env []string
	User, WorkingDir     string
	Volumes              []string
	StopSignal           string
	Labels               map[string]string
	// Files are path → content of one more layer. A path that ends in "/" is a
	// directory; the content "->TARGET" makes a symlink.
	Files map[string]string
	// Blobs are sizes of further layers, each one file of noise that does not
	// compress.
	Blobs []int64
	// Empty leaves busybox out: an image that cannot run and is pulled at once.
	Empty bool
	// Salt makes an image of its own out of the same options.
	Salt string
}

// Image builds an image from busybox. Layers are the same bytes each time, so
// that images share them.
func Image(o ImageOptions) (v1.Image, error) {
	var layers []v1.Layer
	if !o.Empty {
		base, err := baseLayers()
		if err != nil {
			return nil, err
		}
		layers = slices.Clone(base)
	}
	if len(o.Files) > 0 {
		l, err := filesLayer(o.Files)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	for i, size := range o.Blobs {
		l, err := noiseLayer(fmt.Sprintf("%s%d", o.Salt, i), size)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	img, err := mutate.AppendLayers(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1), layers...)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config = o.config()
	return mutate.ConfigFile(img, file)
}

func (o ImageOptions) config() v1.Config {
	c := v1.Config{
		Entrypoint: o.Entrypoint, Cmd: o.Cmd, User: o.User, WorkingDir: o.WorkingDir,
		StopSignal: o.StopSignal, Labels: maps.Clone(o.Labels),
		Env: append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, o.Env...),
	}
	if o.Entrypoint == nil && o.Cmd == nil {
		c.Cmd = []string{"sh"}
	}
	if o.Volumes != nil {
		c.Volumes = map[string]struct{}{}
		for _, v := range o.Volumes {
			c.Volumes[v] = struct{}{}
		}
	}
	if o.Salt != "" {
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels["salt"] = o.Salt
	}
	return c
}

// Index builds an image index: the image for this machine among others, and an
// attestation as buildkit adds one.
func Index(img v1.Image) (v1.ImageIndex, error) {
	other, err := Image(ImageOptions{Salt: "another platform"})
	if err != nil {
		return nil, err
	}
	arch := "arm64"
	if runtime.GOARCH == arch {
		arch = "amd64"
	}
	idx := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}},
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{
			Platform:    &v1.Platform{OS: "unknown", Architecture: "unknown"},
			Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"},
		}},
	)
	return idx, nil
}

// ID is the image's ID: the digest of its config.
func ID(img v1.Image) string {
	h, err := img.ConfigName()
	if err != nil {
		panic(err) // the image was built in memory
	}
	return h.String()
}

// baseLayers are busybox, its names, and the files of /etc: made once.
var baseLayers = sync.OnceValues(func() ([]v1.Layer, error) {
	const program = "/bin/busybox"
	bin, err := os.ReadFile(program)
	if err != nil {
		return nil, fmt.Errorf("test images are made of busybox: apt-get install busybox-static: %w", err)
	}
	list, err := exec.Command(program, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", program, err)
	}
	names := map[string]string{}
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" {
			names["bin/"+applet] = "->busybox"
		}
	}
	var layers []v1.Layer
	for _, files := range []map[string]string{
		{"bin/busybox": string(bin), "tmp/": "", "proc/": "", "sys/": "", "dev/": "", "root/": "", "home/dev/": ""},
		names,
		{"etc/passwd": Passwd, "etc/group": Group},
	} {
		l, err := filesLayer(files)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	return layers, nil
})

// filesLayer is a layer of files; those in a bin directory can be executed.
func filesLayer(files map[string]string) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	made := map[string]bool{".": true}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		clean := strings.TrimPrefix(path.Clean(name), "/")
		if err := parents(w, made, path.Dir(clean)); err != nil {
			return nil, err
		}
		text := files[name]
		h := &tar.Header{Name: clean, Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(text))}
		target, link := strings.CutPrefix(text, "->")
		switch {
		case strings.HasSuffix(name, "/"):
			if err := parents(w, made, clean); err != nil {
				return nil, err
			}
			continue
		case link:
			h.Typeflag, h.Linkname, h.Mode, h.Size, text = tar.TypeSymlink, target, 0o777, 0, ""
		case path.Base(path.Dir(clean)) == "bin":
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, text); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return layer(buf.Bytes())
}

func parents(w *tar.Writer, made map[string]bool, dir string) error {
	if made[dir] || dir == "/" {
		return nil
	}
	if err := parents(w, made, path.Dir(dir)); err != nil {
		return err
	}
	made[dir] = true
	mode := int64(0o755)
	switch dir {
	case "tmp":
		mode = 0o1777
	case "root":
		mode = 0o700
	}
	return w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: mode})
}

// noiseLayer is size bytes that do not compress, made from name alone.
func noiseLayer(name string, size int64) (v1.Layer, error) {
	data := make([]byte, size)
	x := uint64(14695981039346656037)
	for _, c := range []byte(name) {
		x = (x ^ uint64(c)) * 1099511628211
	}
	for i := range data {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		data[i] = byte(x)
	}
	return filesLayer(map[string]string{"noise/" + name: string(data)})
}

func layer(tarred []byte) (v1.Layer, error) {
	return tarball.LayerFromOpener(
		func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(tarred)), nil },
		tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}

// DockerArchive writes images as "docker save" does: by reference. An image
// whose reference begins with "sha256:" has none in the archive.
func DockerArchive(w io.Writer, images map[string]v1.Image) error {
	refs := map[name.Reference]v1.Image{}
	for ref, img := range images {
		var r name.Reference
		var err error
		if strings.HasPrefix(ref, "sha256:") {
			r, err = name.NewDigest("none.test/none@" + ref)
		} else {
			r, err = name.NewTag(ref)
		}
		if err != nil {
			return err
		}
		refs[r] = img
	}
	return tarball.MultiRefWrite(refs, w)
}

// OCIArchive writes images as a tarred OCI layout, each named in the index by
// its reference as containerd and skopeo do. A bare tag such as "latest" is
// written as the tag that it is.
func OCIArchive(w io.Writer, images map[string]v1.Image) (err error) {
	dir, err := os.MkdirTemp("", "berth-layout-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	for _, ref := range slices.Sorted(maps.Keys(images)) {
		notes := map[string]string{"org.opencontainers.image.ref.name": ref}
		if strings.Contains(ref, "/") {
			notes["io.containerd.image.name"] = ref
		}
		if err := l.AppendImage(images[ref], layout.WithAnnotations(notes)); err != nil {
			return err
		}
	}
	t := tar.NewWriter(w)
	if err := t.AddFS(os.DirFS(dir)); err != nil {
		return err
	}
	return t.Close()
}
