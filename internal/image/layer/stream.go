package layer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

const (
	// maxWindow bounds what a zstd stream makes its decoder keep; it is that of
	// zstd --long.
	maxWindow = 128 << 20
	// worthAProgram is the compressed size from which a program that
	// decompresses faster is worth starting.
	worthAProgram = 4 << 20
)

// hasProgram tells whether containerd would find igzip: on an image's programs
// it takes 0.6 of our time. unpigz takes as long, and more of the machine.
var hasProgram = sync.OnceValue(func() bool {
	_, err := exec.LookPath("igzip")
	return err == nil && os.Getenv("CONTAINERD_DISABLE_IGZIP") == ""
})

// A Stream is a layer's tar. A goroutine decompresses and hashes it ahead of
// who reads it.
type Stream struct {
	pipe   *Pipe
	done   chan struct{}
	digest digest.Digester
}

// NewStream begins to decompress r, which is size bytes; where compressed is
// false, r is the tar. What it is compressed with, it says itself. Close must
// be called; r is not read any more once that returns. A reader that may block
// is to be ended first.
func NewStream(r io.Reader, compressed bool, size int64) *Stream {
	s := &Stream{pipe: NewPipe(), done: make(chan struct{}), digest: digest.Canonical.Digester()}
	go func() {
		defer close(s.done)
		s.pipe.End(s.run(r, compressed, size))
	}()
	return s
}

func (s *Stream) run(r io.Reader, compressed bool, size int64) (err error) {
	if compressed {
		z, err := decompressor(r, size)
		if err != nil {
			return err
		}
		defer func() { _ = z.Close() }() // it was read, or it is not wanted
		r = z
	}
	hash := s.digest.Hash()
	see := func(p []byte) error { _, err := hash.Write(p); return err }
	for {
		if err := s.pipe.Fill(r, see); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// Read implements io.Reader.
func (s *Stream) Read(p []byte) (int, error) { return s.pipe.Read(p) }

// Digest reads what is left and returns the digest of the whole.
func (s *Stream) Digest() (digest.Digest, error) {
	if _, err := io.Copy(io.Discard, struct{ io.Reader }{s}); err != nil {
		return "", err
	}
	<-s.done
	return s.digest.Digest(), nil
}

// Close ends the goroutine and waits for it.
func (s *Stream) Close() {
	s.pipe.Close()
	<-s.done
}

// decompressor looks at the first bytes, as containerd does.
func decompressor(r io.Reader, size int64) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, bufferSize/4)
	head, err := b.Peek(10)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch compression.DetectCompression(head) {
	case compression.Gzip:
		if size >= worthAProgram && hasProgram() {
			return compression.DecompressStream(b)
		}
		z, err := gzip.NewReader(b)
		return z, damaged(err)
	case compression.Zstd:
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, damaged(err)
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(b), nil
}

// damaged names the kind of an error of a format.
func damaged(err error) error {
	if errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) || errors.Is(err, zstd.ErrMagicMismatch) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}
