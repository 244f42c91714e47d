package image

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"

	"berth/internal/steps"
)

// Remove removes the image that ref resolves to under all of its names, and
// waits for GC to free what nothing else uses. A container's snapshot keeps the
// layers below it. An image that is not here is no error.
func (s *Store) Remove(ctx context.Context, ref string) error {
	img, err := s.Get(ctx, ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	// A step that is cut leaves the record that was asked for, by which a
	// retry finds the image; an ID finds it by any.
	last := img.nameOf(ref)
	rest := slices.DeleteFunc(slices.Clone(img.names), func(name string) bool { return name == last })
	err = s.steps.Run(ctx, "RemoveImage", img.ID,
		steps.Step{Name: "names", Do: func(ctx context.Context) error {
			for _, name := range rest {
				if err := s.unrecord(ctx, name); err != nil {
					return err
				}
			}
			return nil
		}},
		steps.Step{Name: "content", Do: func(ctx context.Context) error {
			return s.unrecord(ctx, last, images.SynchronousDelete())
		}},
	)
	if err != nil {
		return fmt.Errorf("remove image %s: %w", img.ID, err)
	}
	s.log.Info("image removed", "image", ref, "id", img.ID)
	return nil
}

// nameOf is the record that ref names, any where it is an ID.
func (img *Image) nameOf(ref string) string {
	if slices.Contains(img.names, ref) {
		return ref
	}
	if named, err := parseReference(ref); err == nil && slices.Contains(img.names, named.String()) {
		return named.String()
	}
	return img.names[len(img.names)-1]
}

func (s *Store) unrecord(ctx context.Context, name string, opts ...images.DeleteOpt) error {
	err := s.client.ImageService().Delete(s.ctx(ctx), name, opts...)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("record %s: %w", name, err)
	}
	return nil
}
