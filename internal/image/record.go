package image

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// labels are those that a record of this name carries.
func (s *Store) labels(name string) map[string]string {
	labels := map[string]string{labelManaged: "managed"}
	if s.pinned(name) {
		labels[labelPinned] = "pinned"
	}
	return labels
}

// record makes names point to target, moving those that point elsewhere.
// Doing it twice is harmless.
func (s *Store) record(ctx context.Context, names []string, target ocispec.Descriptor) error {
	ctx = s.ctx(ctx)
	for _, name := range names {
		if err := s.recordOne(ctx, images.Image{Name: name, Target: target, Labels: s.labels(name)}); err != nil {
			return fmt.Errorf("record image %s as %s: %w", target.Digest, name, err)
		}
	}
	return nil
}

// recordOne tries again where the record goes or comes between two calls.
func (s *Store) recordOne(ctx context.Context, img images.Image) error {
	service := s.client.ImageService()
	fields := []string{"target"}
	for key := range img.Labels {
		fields = append(fields, "labels."+key)
	}
	for {
		_, err := service.Create(ctx, img)
		if !errdefs.IsAlreadyExists(err) {
			return err
		}
		_, err = service.Update(ctx, img, fields...)
		if !errdefs.IsNotFound(err) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}
