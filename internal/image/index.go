package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/usage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An Image is one image as found. It is shared: callers do not modify it.
type Image struct {
	ID       string // "sha256:…", the config's digest
	Proto    *runtime.Image
	Config   ocispec.ImageConfig
	Platform ocispec.Platform
	ChainID  string // the snapshot that containers stand on
	// Containerd is the image by one of its records.
	Containerd containerd.Image

	spec  *ocispec.Image
	names []string
}

// info is what a target says by itself. A target is a digest, so it never
// changes and is read once.
type info struct {
	id      string
	chainID string
	size    int64
	spec    *ocispec.Image
}

// describe reads what target holds for this platform.
func (s *Store) describe(ctx context.Context, target ocispec.Descriptor) (*info, error) {
	s.infoMu.Lock()
	known := s.infos[target.Digest]
	s.infoMu.Unlock()
	if known != nil {
		return known, nil
	}
	found, err := s.readInfo(s.ctx(ctx), target)
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", target.Digest, err)
	}
	s.infoMu.Lock()
	defer s.infoMu.Unlock()
	s.infos[target.Digest] = found
	return found, nil
}

func (s *Store) readInfo(ctx context.Context, target ocispec.Descriptor) (*info, error) {
	store := s.client.ContentStore()
	manifest, err := images.Manifest(ctx, store, target, s.platform)
	if err != nil {
		return nil, err
	}
	if manifest.Config.Size > maxConfigSize {
		return nil, fmt.Errorf("configuration of %d bytes, more than the %d allowed: %w", manifest.Config.Size, maxConfigSize, errdefs.ErrFailedPrecondition)
	}
	blob, err := content.ReadBlob(ctx, store, manifest.Config)
	if err != nil {
		return nil, err
	}
	spec := new(ocispec.Image)
	if err := json.Unmarshal(blob, spec); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", manifest.Config.Digest, err)
	}
	size, err := usage.CalculateImageUsage(ctx, images.Image{Target: target}, store,
		usage.WithManifestLimit(s.platform, 1), usage.WithManifestUsage())
	if err != nil {
		return nil, fmt.Errorf("size: %w", err)
	}
	return &info{
		id:      manifest.Config.Digest.String(),
		chainID: identity.ChainID(spec.RootFS.DiffIDs).String(),
		size:    size,
		spec:    spec,
	}, nil
}

// all is every image by its ID. A record whose content is not here or not for
// this platform is no image that a container could use and is left out.
func (s *Store) all(ctx context.Context) (map[string]*Image, error) {
	ctx = s.ctx(ctx)
	records, err := s.client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	byID := map[string]*Image{}
	targets := map[digest.Digest]bool{}
	for _, record := range records {
		info, err := s.describe(ctx, record.Target)
		if err != nil {
			if ctx.Err() != nil {
				return nil, fmt.Errorf("list images: %w", ctx.Err())
			}
			s.log.Debug("image record left out", "name", record.Name, "err", err)
			continue
		}
		targets[record.Target.Digest] = true
		img := byID[info.id]
		if img == nil {
			img = s.newImage(info, record)
			byID[info.id] = img
		}
		img.names = append(img.names, record.Name)
		img.Proto.Pinned = img.Proto.Pinned || record.Labels[labelPinned] == "pinned" || s.pinned(record.Name)
	}
	for _, img := range byID {
		slices.Sort(img.names)
		img.Proto.RepoTags, img.Proto.RepoDigests = tagsAndDigests(img.names)
	}
	s.forget(targets)
	return byID, nil
}

// forget drops what is known of targets that no record names, when they have
// become many; one being pulled is read again.
func (s *Store) forget(keep map[digest.Digest]bool) {
	s.infoMu.Lock()
	defer s.infoMu.Unlock()
	if len(s.infos) < 2*len(keep)+64 {
		return
	}
	for target := range s.infos {
		if !keep[target] {
			delete(s.infos, target)
		}
	}
}

func (s *Store) newImage(in *info, record images.Image) *Image {
	proto := &runtime.Image{Id: in.id, Size: uint64(in.size), Spec: &runtime.ImageSpec{Image: in.id}}
	proto.Uid, proto.Username = userOf(in.spec.Config.User)
	return &Image{
		ID:         in.id,
		Proto:      proto,
		Config:     in.spec.Config,
		Platform:   in.spec.Platform,
		ChainID:    in.chainID,
		Containerd: containerd.NewImageWithPlatform(s.client, record, s.platform),
		spec:       in.spec,
	}
}

// userOf tells a numeric user from a name; a group is not reported.
func userOf(user string) (*runtime.Int64Value, string) {
	user, _, _ = strings.Cut(user, ":")
	if user == "" {
		return nil, ""
	}
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		return &runtime.Int64Value{Value: uid}, ""
	}
	return nil, user
}

// List returns every image.
func (s *Store) List(ctx context.Context) ([]*runtime.Image, error) {
	byID, err := s.all(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]*runtime.Image, 0, len(byID))
	for _, img := range byID {
		list = append(list, img.Proto)
	}
	slices.SortFunc(list, func(a, b *runtime.Image) int { return strings.Compare(a.Id, b.Id) })
	return list, nil
}

// Get resolves an ID, a unique prefix of one, or a reference. A reference goes
// before a prefix that reads the same.
//
// Errors: ErrNotFound; ErrInvalidArgument for what is no reference, or a
// prefix of several IDs.
func (s *Store) Get(ctx context.Context, ref string) (*Image, error) {
	byID, err := s.all(ctx)
	if err != nil {
		return nil, err
	}
	return find(byID, ref)
}

func find(byID map[string]*Image, ref string) (*Image, error) {
	if img := byID[ref]; img != nil {
		return img, nil
	}
	prefix := idPrefix.FindStringSubmatch(ref)
	if prefix != nil && len(prefix[1]) == 64 {
		if img := byID["sha256:"+prefix[1]]; img != nil {
			return img, nil
		}
		return nil, fmt.Errorf("image %s is not here: %w", ref, errdefs.ErrNotFound)
	}
	named, err := parseReference(ref)
	if err == nil {
		for _, img := range byID {
			if slices.Contains(img.names, named.String()) || slices.Contains(img.names, ref) {
				return img, nil
			}
		}
	}
	if prefix != nil {
		return findPrefix(byID, prefix[1])
	}
	if err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("image %s is not here; pull it first: %w", named, errdefs.ErrNotFound)
}

func findPrefix(byID map[string]*Image, prefix string) (*Image, error) {
	var found []*Image
	for id, img := range byID {
		if strings.HasPrefix(id, "sha256:"+prefix) {
			found = append(found, img)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("image %s is not here; pull it first: %w", prefix, errdefs.ErrNotFound)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("image.image %s begins the IDs of %d images; give more of it: %w", prefix, len(found), errdefs.ErrInvalidArgument)
}

// Info is what a verbose status tells of an image, as JSON, with the keys that
// crictl knows from containerd.
func (img *Image) Info() (map[string]string, error) {
	text, err := json.Marshal(struct {
		ChainID   string         `json:"chainID"`
		ImageSpec *ocispec.Image `json:"imageSpec"`
	}{img.ChainID, img.spec})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", img.ID, err)
	}
	return map[string]string{"info": string(text)}, nil
}
