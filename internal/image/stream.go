package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// errNotStreamed is an image that containerd's unpacker has to unpack.
var errNotStreamed = errors.New("image: not one that is unpacked while it comes")

// streamed are the layers that are, and whether they are compressed; what with,
// the stream itself says.
var streamed = map[string]bool{
	ocispec.MediaTypeImageLayer:            false,
	ocispec.MediaTypeImageLayerGzip:        true,
	ocispec.MediaTypeImageLayerZstd:        true,
	images.MediaTypeDockerSchema2Layer:     true,
	images.MediaTypeDockerSchema2LayerGzip: true,
	images.MediaTypeDockerSchema2LayerZstd: true,
}

// A streamer unpacks the layers of one pull while they are downloaded, each
// into a snapshot without a parent, which it gets when it is committed, in
// their order. It writes into the snapshotter's directories, so the
// snapshotter is in this process.
type streamer struct {
	store     *Store
	connect   func(context.Context) (remotes.Fetcher, error)
	tracker   *tracker
	content   content.Store
	snapshots snapshots.Snapshotter
	// source notes on a blob where it came from.
	source images.HandlerFunc
}

// canStream tells whether layers can be written by this process, in any order.
func (s *Store) canStream(ctx context.Context) (bool, error) {
	if !s.opts.InProcess || s.opts.Snapshotter != "overlayfs" {
		return false, nil
	}
	able, err := s.client.GetSnapshotterCapabilities(ctx, s.opts.Snapshotter)
	if err != nil {
		return false, fmt.Errorf("capabilities of snapshotter %s: %w", s.opts.Snapshotter, err)
	}
	return slices.Contains(able, snapshots.RebaseCap), nil
}

func (s *Store) newStreamer(t *tracker, resolver remotes.Resolver, ref string) (*streamer, error) {
	source, err := docker.AppendDistributionSourceLabel(s.client.ContentStore(), ref)
	if err != nil {
		return nil, err
	}
	return &streamer{
		store: s, tracker: t, source: source,
		// The resolver knows the limit of downloads only once the pull has begun.
		connect: func(ctx context.Context) (remotes.Fetcher, error) { return resolver.Fetcher(ctx, ref) },
		content: s.client.ContentStore(), snapshots: s.client.SnapshotService(s.opts.Snapshotter),
	}, nil
}

// wrap makes a handler for which a manifest is handled when its layers are
// unpacked.
func (st *streamer) wrap(h images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := h.Handle(ctx, desc)
		if err != nil || !images.IsManifestType(desc.MediaType) {
			return children, err
		}
		var layers, configs, rest []ocispec.Descriptor
		for _, child := range children {
			switch {
			case images.IsLayerType(child.MediaType):
				layers = append(layers, child)
			case images.IsConfigType(child.MediaType):
				configs = append(configs, child)
			default:
				rest = append(rest, child)
			}
		}
		foreign := func(l ocispec.Descriptor) bool { _, ours := streamed[l.MediaType]; return !ours }
		if len(configs) != 1 || len(layers) == 0 || slices.ContainsFunc(layers, foreign) {
			return nil, errNotStreamed
		}
		if _, err := h.Handle(ctx, configs[0]); err != nil {
			return nil, err
		}
		return rest, st.unpack(ctx, configs[0], layers)
	})
}

// unpack makes the snapshots of all layers.
func (st *streamer) unpack(ctx context.Context, config ocispec.Descriptor, descs []ocispec.Descriptor) (err error) {
	layers, err := st.plan(ctx, config, descs)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer func() {
		for _, l := range layers {
			err = errors.Join(err, l.discard(ctx))
		}
	}()
	var fetches, commits errgroup.Group
	fetches.SetLimit(st.store.opts.MaxConcurrentDownloads)
	commits.Go(func() error {
		for _, l := range layers {
			if err := l.commit(ctx); err != nil {
				cancel(err)
				return err
			}
		}
		return nil
	})
	for _, l := range layers {
		fetches.Go(func() error {
			if err := l.fetch(ctx); err != nil {
				cancel(err)
				return err
			}
			close(l.ready)
			return nil
		})
	}
	failed := errors.Join(fetches.Wait(), commits.Wait())
	if failed != nil {
		return context.Cause(ctx) // the first failure; the others are of being cancelled
	}
	key := "containerd.io/gc.ref.snapshot." + st.store.opts.Snapshotter
	_, err = st.content.Update(ctx, content.Info{
		Digest: config.Digest, Labels: map[string]string{key: layers[len(layers)-1].chainID},
	}, "labels."+key)
	return err
}

// plan reads from the image's configuration what its layers are to become.
func (st *streamer) plan(ctx context.Context, config ocispec.Descriptor, descs []ocispec.Descriptor) ([]*layerPull, error) {
	blob, err := content.ReadBlob(ctx, st.content, config)
	if err != nil {
		return nil, err
	}
	var image struct {
		RootFS ocispec.RootFS `json:"rootfs"`
	}
	if err := json.Unmarshal(blob, &image); err != nil {
		return nil, fmt.Errorf("configuration %s: %w: %w", config.Digest, err, errdefs.ErrInvalidArgument)
	}
	ids := image.RootFS.DiffIDs
	if image.RootFS.Type != "" && image.RootFS.Type != "layers" {
		return nil, errNotStreamed
	}
	if len(ids) != len(descs) {
		return nil, fmt.Errorf("the manifest has %d layers, the configuration %s has %d: %w", len(descs), config.Digest, len(ids), errdefs.ErrInvalidArgument)
	}
	fetcher, err := st.connect(ctx)
	if err != nil {
		return nil, err
	}
	chain := identity.ChainIDs(append([]digest.Digest(nil), ids...))
	layers := make([]*layerPull, len(descs))
	for i, desc := range descs {
		layers[i] = &layerPull{
			streamer: st, fetcher: fetcher, desc: desc, diffID: ids[i], chainID: chain[i].String(), ready: make(chan struct{}),
		}
		if i > 0 {
			layers[i].parent = chain[i-1].String()
		}
	}
	return layers, nil
}
