package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	crierrors "k8s.io/cri-api/pkg/errors"

	"berth/internal/host"
	"berth/internal/image"
	"berth/internal/record"
)

// A volumeImage is an image that a CRI mount puts into a container.
type volumeImage struct {
	mount int // index among the container's mounts
	img   *image.Image
}

// A volumeError says that the image of a mount cannot be had.
type volumeError struct{ err error }

func (e *volumeError) Error() string { return e.err.Error() }
func (e *volumeError) Unwrap() error { return e.err }

func volumeFailed(mount int, field string, err error) error {
	return &volumeError{fmt.Errorf("mounts[%d].%s: %w", mount, field, err)}
}

// marked begins the text of such an error with what a kubelet knows it by.
func marked(err error) error {
	if failed := new(volumeError); errors.As(err, &failed) {
		return fmt.Errorf("%w: %w", crierrors.ErrImageVolumeMountFailed, err)
	}
	return err
}

// findVolumeImages finds the images of the container's mounts. A client pulls
// them first, as it does the container's own.
func (s *Service) findVolumeImages(ctx context.Context, c *creation) error {
	for i, m := range c.rec.Config.GetMounts() {
		if m.GetImage() == nil {
			continue
		}
		img, err := s.Images.Get(ctx, m.GetImage().GetImage())
		if errdefs.IsNotFound(err) {
			return volumeFailed(i, "image", fmt.Errorf("%w; pull it first", err))
		}
		if err != nil {
			return volumeFailed(i, "image", err)
		}
		ref := img.ID
		if digests := img.Proto.GetRepoDigests(); len(digests) > 0 {
			ref = digests[0]
		}
		c.volumeImages = append(c.volumeImages, volumeImage{i, img})
		c.rec.ImageVolumes = append(c.rec.ImageVolumes, record.ImageVolume{Mount: i, ImageID: img.ID, ImageRef: ref})
	}
	return nil
}

// imageView is the snapshot through which a container has the image of one of
// its mounts. It keeps the image's layers while the container is there, whatever
// becomes of the image.
func imageView(id string, mount int) string { return imageViews(id) + strconv.Itoa(mount) }

func imageViews(id string) string { return id + "-image-" }

// ownerOf is the container that a snapshot is of, by its name.
func ownerOf(snapshot string) string {
	id, _, _ := strings.Cut(snapshot, "-")
	return id
}

// imagesDir is where the images of a container's mounts are mounted while its
// task is made.
func (s *Service) imagesDir(id string) string {
	return filepath.Join(s.Paths.ContainerState(id), "images")
}

func (s *Service) imageDir(id string, mount int) string {
	return filepath.Join(s.imagesDir(id), strconv.Itoa(mount))
}

// makeImageViews makes the snapshots, and finds what their mounts show.
func (s *Service) makeImageViews(ctx context.Context, c *creation) error {
	layers := s.client.SnapshotService(c.rec.Snapshotter)
	for _, v := range c.volumeImages {
		err := s.Images.Unpack(ctx, v.img)
		if err == nil {
			_, err = layers.View(ctx, imageView(c.rec.ID, v.mount), v.img.ChainID, snapshots.WithLabels(s.marksMapped(c.rec, c.box)))
		}
		if err != nil {
			return volumeFailed(v.mount, "image", fmt.Errorf("%s: %w", v.img.ID, err))
		}
		c.host.Mounts[v.mount].Path = s.imageDir(c.rec.ID, v.mount)
	}
	return s.findSubPaths(ctx, c)
}

// findSubPaths resolves the sub paths, in images that are mounted for that.
func (s *Service) findSubPaths(ctx context.Context, c *creation) error {
	mounts := c.rec.Config.GetMounts()
	if !slices.ContainsFunc(c.volumeImages, func(v volumeImage) bool { return mounts[v.mount].GetImageSubPath() != "" }) {
		return nil
	}
	return s.withImages(ctx, c.rec, func() error {
		for _, v := range c.volumeImages {
			sub := mounts[v.mount].GetImageSubPath()
			if sub == "" {
				continue
			}
			found, err := host.ResolveIn(s.imageDir(c.rec.ID, v.mount), sub)
			if err != nil {
				return volumeFailed(v.mount, "image_sub_path", fmt.Errorf("image %s: %w", v.img.ID, err))
			}
			c.host.Mounts[v.mount].Path = found
		}
		return nil
	})
}

// withImages has the images of the container's mounts mounted while do runs. A
// container that do makes has them from then on in its own mount namespace.
func (s *Service) withImages(ctx context.Context, c *record.Container, do func() error) (err error) {
	if len(c.ImageVolumes) == 0 {
		return do()
	}
	dir := s.imagesDir(c.ID)
	defer func() { err = errors.Join(err, host.UnmountBelow(dir)) }()
	layers := s.client.SnapshotService(c.Snapshotter)
	for _, v := range c.ImageVolumes {
		target := s.imageDir(c.ID, v.Mount)
		if err := os.MkdirAll(target, 0o700); err != nil {
			return err
		}
		mounts, err := layers.Mounts(s.Engine.Context(ctx), imageView(c.ID, v.Mount))
		if err == nil {
			err = s.mountImage(c, mounts, target)
		}
		if err != nil {
			return volumeFailed(v.Mount, "image", fmt.Errorf("%s: %w", v.ImageID, err))
		}
	}
	return do()
}

// mountImage mounts an image, of which nothing changes. One of one layer is the
// layer's directory; containerd would map its IDs by a second mount over the
// first.
func (s *Service) mountImage(c *record.Container, mounts []mount.Mount, target string) error {
	mapsIDs := func(option string) bool { return strings.HasPrefix(option, "uidmap=") }
	if len(mounts) == 1 && mounts[0].Type == "bind" && slices.ContainsFunc(mounts[0].Options, mapsIDs) {
		return host.BindMapped(mounts[0].Source, target, s.Paths.Namespace(c.SandboxID, "user"))
	}
	return mount.All(mounts, target)
}

// dropImageViews removes the snapshots, also those of a container that no
// record names.
func (s *Service) dropImageViews(ctx context.Context, id string) error {
	if c, err := s.Store.Containers.Get(id); err == nil && len(c.ImageVolumes) == 0 {
		return nil
	}
	if err := host.UnmountBelow(s.imagesDir(id)); err != nil {
		return err
	}
	ctx = s.Engine.Context(ctx)
	layers := s.client.SnapshotService(s.snapshotterOf(id))
	var names []string
	err := layers.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		names = append(names, info.Name)
		return nil
	}, fmt.Sprintf("name~=%q,labels.%q==%q", "^"+imageViews(id), LabelRoot, s.Paths.Root))
	if err != nil {
		return fmt.Errorf("list the images of the mounts of container %s: %w", id, err)
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, ignoreGone(layers.Remove(ctx, name)))
	}
	return errors.Join(errs...)
}
