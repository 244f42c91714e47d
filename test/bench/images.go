package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"berth/internal/testkit"
)

//go:embed workload/work.c
var workSource []byte

// compileWork makes the workload's program, which is also the peer's pause.
func compileWork(dir string) ([]byte, error) {
	source, program := filepath.Join(dir, "work.c"), filepath.Join(dir, "work")
	if err := os.WriteFile(source, workSource, 0o600); err != nil {
		return nil, err
	}
	out, err := exec.Command("gcc", "-static", "-O2", "-s", "-o", program, source).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("compile the workload with gcc (\"make deps\" installs it): %w: %s", err, out)
	}
	return os.ReadFile(program)
}

func workImage(program []byte) (v1.Image, error) {
	return testkit.Image(testkit.ImageOptions{
		Empty: true, Entrypoint: []string{workProgram}, Cmd: idleArgs,
		Files: map[string]string{
			"bin/work": string(program), "bin/true": "->work", "etc/passwd": testkit.Passwd, "etc/group": testkit.Group,
			"dev/": "", "proc/": "", "sys/": "", "tmp/": "",
		},
	})
}

// pauseImage holds the same program by a name of its own, so that it does not
// pass for a workload.
func pauseImage(program []byte) (v1.Image, error) {
	return testkit.Image(testkit.ImageOptions{
		Empty: true, Entrypoint: []string{"/bin/pause"}, Cmd: idleArgs, Files: map[string]string{"bin/pause": string(program)},
	})
}

// A gzipped is a layer that was compressed once.
type gzipped struct {
	data   []byte
	digest v1.Hash
	diffID v1.Hash
}

func (l *gzipped) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *gzipped) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *gzipped) Size() (int64, error)                { return int64(len(l.data)), nil }
func (l *gzipped) MediaType() (types.MediaType, error) { return types.OCILayer, nil }
func (l *gzipped) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.data)), nil
}
func (l *gzipped) Uncompressed() (io.ReadCloser, error) {
	return gzip.NewReader(bytes.NewReader(l.data))
}

// newLayer compresses what write writes as a tar.
func newLayer(write func(*tar.Writer) error) (*gzipped, error) {
	var buf bytes.Buffer
	z, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	plain := sha256.New()
	t := tar.NewWriter(io.MultiWriter(plain, z))
	if err := write(t); err != nil {
		return nil, err
	}
	if err := t.Close(); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(buf.Bytes())
	return &gzipped{data: buf.Bytes(), digest: hash(sum[:]), diffID: hash(plain.Sum(nil))}, nil
}

func hash(sum []byte) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum)} }

const (
	largeLayers = 8
	largeFile   = 4 << 20
	largeFiles  = 16 // a layer: 64 MiB
)

// largeImage has 8 layers of 64 MiB, of which every second file is text and
// the others do not compress at all.
func largeImage() (v1.Image, error) {
	layers := make([]v1.Layer, largeLayers)
	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	for i := range layers {
		group.Go(func() (err error) {
			layers[i], err = newLayer(func(t *tar.Writer) error {
				for j := range largeFiles {
					text := noise(uint64(1+i*largeFiles+j), largeFile)
					if j%2 == 1 {
						text = prose(i*largeFiles+j, largeFile)
					}
					if err := writeFile(t, fmt.Sprintf("large/%d/%d", i, j), text); err != nil {
						return err
					}
				}
				return nil
			})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return imageOf(layers...)
}

const (
	smallFiles = 20000
	smallDirs  = 200
)

// smallFilesImage has one layer of 20,000 files of 1 to 4 KiB in 200
// directories.
func smallFilesImage() (v1.Image, error) { return filesImage(smallDirs, smallFiles/smallDirs) }

func filesImage(dirs, filesOfEach int) (v1.Image, error) {
	layer, err := newLayer(func(t *tar.Writer) error {
		for i := range dirs {
			dir := fmt.Sprintf("small/%d/", i)
			if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
				return err
			}
			for j := range filesOfEach {
				if err := writeFile(t, fmt.Sprintf("%s%d", dir, j), prose(i*1000+j, 1024+j*1021%3072)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return imageOf(layer)
}

func imageOf(layers ...v1.Layer) (v1.Image, error) {
	img, err := testkit.Image(testkit.ImageOptions{Empty: true, Cmd: []string{"/none"}})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(img, layers...)
}

func writeFile(t *tar.Writer, name string, text []byte) error {
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
		return err
	}
	_, err := t.Write(text)
	return err
}

// noise does not compress. The same seed makes the same bytes.
func noise(seed uint64, size int) []byte {
	data := make([]byte, size)
	x := seed * 0x9e3779b97f4a7c15
	for i := 0; i+8 <= size; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		for j := range 8 {
			data[i+j] = byte(x >> (8 * j))
		}
	}
	return data
}

// prose compresses as text does, about three to one, and is another text for
// each number.
func prose(n, size int) []byte {
	text := make([]byte, 0, size+16)
	x := uint64(n+1) * 0x9e3779b97f4a7c15
	for len(text) < size {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		text = append(append(text, words[x%uint64(len(words))]...), ' ')
	}
	return text[:size]
}

// words are 2048 pronounceable ones of two to six letters.
var words = sync.OnceValue(func() [][]byte {
	all := make([][]byte, 2048)
	x := uint64(1)
	for i := range all {
		for range 1 + i%3 {
			x = x*6364136223846793005 + 1442695040888963407
			all[i] = append(all[i], "bcdfghklmnprstvw"[x>>40%16], "aeiou"[x>>33%5])
		}
	}
	return all
})()
