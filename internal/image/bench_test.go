package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"berth/internal/testkit"
	"berth/internal/testkit/registrytest"
)

// benchRegistryEnv makes this program the registry of a benchmark: what serves
// an image is not to share a garbage collector with what pulls it. Its value is
// the image to serve.
const benchRegistryEnv = "BERTH_BENCH_REGISTRY"

// benchRef is the image's name there.
const benchRef = "bench:1"

var benchImages = map[string]func() ([]v1.Layer, error){
	"Large": largeLayers,
	"Small": smallLayer,
}

// serveBench serves until its standard input ends.
func serveBench(which string) error {
	layers, err := benchImages[which]()
	if err != nil {
		return err
	}
	img, err := testkit.Image(testkit.ImageOptions{Empty: true, Salt: "bench"})
	if err != nil {
		return err
	}
	if img, err = mutate.AppendLayers(img, layers...); err != nil {
		return err
	}
	r, err := registrytest.New()
	if err != nil {
		return err
	}
	if _, err := r.Push(benchRef, img); err != nil {
		return err
	}
	runtime.GC()
	fmt.Println(r.Host)
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, r.Close())
}

// benchRegistry starts one and returns the image's reference.
func benchRegistry(b *testing.B, which string) string {
	b.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), benchRegistryEnv+"="+which)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			b.Error(err)
		}
	})
	host, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatalf("the registry did not start: %v", err)
	}
	return strings.TrimSpace(host) + "/" + benchRef
}

// BenchmarkPull pulls an image that is not here, in turn with containerd's
// unpacker and with ours. Removing it again, the collection of garbage and the
// write-back of what is dirty are not counted. TMPDIR chooses the disk.
func BenchmarkPull(b *testing.B) {
	for _, which := range []string{"Large", "Small"} {
		b.Run(which, func(b *testing.B) {
			ref := benchRegistry(b, which)
			took, cpu := map[string][]time.Duration{}, map[string][]time.Duration{}
			for range b.N {
				for _, who := range []string{"containerd", "berth"} {
					s := newStore(b, func(o *Options) { o.InProcess = who == "berth"; o.Log = slog.New(slog.DiscardHandler) }, "")
					settle(b)
					used, began := cpuTime(b), time.Now()
					id, err := s.Pull(b.Context(), pullRequest(ref))
					took[who] = append(took[who], time.Since(began))
					cpu[who] = append(cpu[who], cpuTime(b)-used)
					if err != nil {
						b.Fatal(err)
					}
					if err := s.Remove(context.Background(), id); err != nil {
						b.Fatal(err)
					}
					if _, err := contents(context.Background(), ""); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(0, "ns/op") // both together say nothing
			for who := range took {
				b.ReportMetric(median(took[who]), who+"-ms")
				b.ReportMetric(median(cpu[who]), who+"-cpu-ms")
			}
			b.ReportMetric(median(took["berth"])/median(took["containerd"]), "ratio")
		})
	}
}

// median is in milliseconds.
func median(all []time.Duration) float64 {
	slices.Sort(all)
	return float64(all[len(all)/2].Microseconds()) / 1000
}

// cpuTime is what this process has used.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func settle(b *testing.B) {
	b.Helper()
	runtime.GC()
	unix.Sync()
}

// largeLayers are 8 layers of 64 MiB, of which every second file compresses
// well and the others not at all.
func largeLayers() ([]v1.Layer, error) {
	const files, size = 16, 4 << 20
	layers := make([]v1.Layer, 8)
	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	for i := range layers {
		group.Go(func() (err error) {
			layers[i], err = benchLayer(func(t *tar.Writer) error {
				for j := range files {
					n := i*files + j
					text := benchNoise(uint64(n+1), size)
					if j%2 == 1 {
						text = benchProse(n, size)
					}
					if err := benchFile(t, fmt.Sprintf("large/%d/%d", i, j), text); err != nil {
						return err
					}
				}
				return nil
			})
			return err
		})
	}
	return layers, group.Wait()
}

// smallLayer is a layer of 20,000 files of 1 to 4 KiB in 200 directories.
func smallLayer() ([]v1.Layer, error) {
	layer, err := benchLayer(func(t *tar.Writer) error {
		for i := range 200 {
			dir := fmt.Sprintf("small/%d/", i)
			if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
				return err
			}
			for j := range 100 {
				if err := benchFile(t, fmt.Sprintf("%s%d", dir, j), benchProse(i*1000+j, 1024+j*1021%3072)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return []v1.Layer{layer}, err
}

func benchLayer(write func(*tar.Writer) error) (v1.Layer, error) {
	var buf bytes.Buffer
	t := tar.NewWriter(&buf)
	if err := errors.Join(write(t), t.Close()); err != nil {
		return nil, err
	}
	return gzipLayer(buf.Bytes())
}

func gzipLayer(data []byte) (v1.Layer, error) {
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
		tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}

func benchFile(t *tar.Writer, name string, text []byte) error {
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
		return err
	}
	_, err := t.Write(text)
	return err
}

// benchNoise does not compress.
func benchNoise(seed uint64, size int) []byte {
	data := make([]byte, size)
	x := seed * 0x9e3779b97f4a7c15
	for i := range data {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		data[i] = byte(x >> 24)
	}
	return data
}

// benchProse compresses well.
func benchProse(n, size int) []byte {
	line := fmt.Sprintf("%d: the quick brown fox jumps over the lazy dog, %d times in this file\n", n, n%97)
	return []byte(strings.Repeat(line, size/len(line)+1)[:size])
}
