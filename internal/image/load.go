package image

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/internal/steps"
)

// Load stores the images of an OCI or docker archive, plain or compressed with
// gzip or zstd, and returns the names they have now: references, and IDs of
// images without one. Nothing is left of an archive that is bad.
func (s *Store) Load(ctx context.Context, r io.Reader) ([]string, error) {
	lease := loadLeasePrefix + rand.Text()
	var (
		index ocispec.Descriptor
		found []ocispec.Descriptor
		names []string
	)
	err := s.steps.Run(ctx, "LoadImage", lease,
		steps.Step{
			Name: "lease",
			Do:   func(ctx context.Context) error { return s.takeLease(ctx, lease) },
			Undo: func(ctx context.Context) error { return s.dropLease(ctx, lease) },
		},
		steps.Step{Name: "import", Do: func(ctx context.Context) (err error) {
			index, err = s.readArchive(s.leased(ctx, lease), r)
			return err
		}},
		steps.Step{Name: "unpack", Do: func(ctx context.Context) (err error) {
			found, err = s.unpackIndex(s.leased(ctx, lease), index)
			return err
		}},
		steps.Step{Name: "record", Do: func(ctx context.Context) (err error) {
			names, err = s.recordLoaded(ctx, found)
			return err
		}},
		steps.Step{Name: "release", Do: func(ctx context.Context) error { return s.dropLease(ctx, lease) }},
	)
	if err != nil {
		return nil, fmt.Errorf("load image archive: %w", err)
	}
	s.log.Info("images loaded", "images", names)
	return names, nil
}

func (s *Store) leased(ctx context.Context, lease string) context.Context {
	return leases.WithLease(s.ctx(ctx), lease)
}

// readArchive puts the archive's blobs into the content store.
func (s *Store) readArchive(ctx context.Context, r io.Reader) (_ ocispec.Descriptor, err error) {
	stream, err := compression.DecompressStream(r)
	if err != nil {
		return ocispec.Descriptor{}, badArchive(err)
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	index, err := archive.ImportIndex(ctx, s.client.ContentStore(), &limitedReader{stream, s.opts.MaxArchive}, archive.WithImportCompression())
	if err != nil {
		return ocispec.Descriptor{}, badArchive(err)
	}
	return index, nil
}

func badArchive(err error) error {
	if errdefs.IsResourceExhausted(err) || errdefs.IsCanceled(err) || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("the archive is neither an OCI layout nor a docker save, or is damaged: %w: %w", err, errdefs.ErrInvalidArgument)
}

// A limitedReader fails, where io.LimitedReader would end as if all were well.
type limitedReader struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (l *limitedReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, fmt.Errorf("the archive is larger than allowed: %w", errdefs.ErrResourceExhausted)
	}
	return n, err
}

// unpackIndex unpacks the images that are for this platform.
func (s *Store) unpackIndex(ctx context.Context, index ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if index.Size > maxManifestSize {
		return nil, fmt.Errorf("index of %d bytes, more than the %d allowed: %w", index.Size, maxManifestSize, errdefs.ErrInvalidArgument)
	}
	store := s.client.ContentStore()
	blob, err := content.ReadBlob(ctx, store, index)
	if err != nil {
		return nil, err
	}
	var idx ocispec.Index
	if err := json.Unmarshal(blob, &idx); err != nil {
		return nil, fmt.Errorf("index.json: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	var found []ocispec.Descriptor
	for _, target := range idx.Manifests {
		if target.Platform != nil && !s.platform.Match(*target.Platform) {
			continue
		}
		if err := s.unpackTarget(ctx, target); err != nil {
			return nil, fmt.Errorf("image %s: %w", target.Digest, err)
		}
		found = append(found, target)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("the archive holds no image for this platform: %w", errdefs.ErrInvalidArgument)
	}
	return found, nil
}

func (s *Store) unpackTarget(ctx context.Context, target ocispec.Descriptor) error {
	store := s.client.ContentStore()
	children := images.LimitManifests(images.FilterPlatforms(images.ChildrenHandler(store), s.platform), s.platform, 1)
	handler := images.Handlers(images.HandlerFunc(limitSizes), images.SetChildrenLabels(store, children))
	if err := images.Walk(ctx, handler, target); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return s.unpack(ctx, images.Image{Name: target.Digest.String(), Target: target})
}

func (s *Store) unpack(ctx context.Context, img images.Image) error {
	err := containerd.NewImageWithPlatform(s.client, img, s.platform).Unpack(ctx, s.opts.Snapshotter,
		containerd.WithUnpackDuplicationSuppressor(&s.chains))
	if err != nil {
		return fmt.Errorf("unpack %s: %w", img.Target.Digest, err)
	}
	return nil
}

// Unpack makes sure that the image has its snapshot, which an image that came
// through another client of containerd may lack. It is cheap where it has.
func (s *Store) Unpack(ctx context.Context, img *Image) error {
	ctx = s.ctx(ctx)
	_, err := s.client.SnapshotService(s.opts.Snapshotter).Stat(ctx, img.ChainID)
	if errdefs.IsNotFound(err) {
		err = s.unpack(ctx, img.Containerd.Metadata())
	}
	if err != nil {
		return fmt.Errorf("snapshot of image %s: %w", img.ID, err)
	}
	return nil
}

// recordLoaded names the images as if they had been pulled.
func (s *Store) recordLoaded(ctx context.Context, found []ocispec.Descriptor) ([]string, error) {
	var names []string
	for _, target := range found {
		info, err := s.describe(ctx, target)
		if err != nil {
			return nil, err
		}
		records, shown := []string{info.id}, info.id
		if named := archiveName(target.Annotations); named != nil {
			records, shown = recordNames(named, target.Digest, info.id), named.String()
		}
		// What an archive says of an image is no part of its record.
		bare := ocispec.Descriptor{MediaType: target.MediaType, Digest: target.Digest, Size: target.Size, Platform: target.Platform}
		if err := s.record(ctx, records, bare); err != nil {
			return nil, err
		}
		names = append(names, shown)
	}
	return names, nil
}

// archiveName is the reference that an archive gives an image, nil where it
// gives none or a mere tag.
func archiveName(annotations map[string]string) reference.Named {
	if name := annotations[images.AnnotationImageName]; name != "" {
		if named, err := parseReference(name); err == nil {
			return named
		}
	}
	name := annotations[ocispec.AnnotationRefName]
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil || reference.IsNameOnly(named) {
		return nil // the OCI layout's "latest" is a tag without a name
	}
	named, err = parseReference(name)
	if err != nil {
		return nil
	}
	return named
}
