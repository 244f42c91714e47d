package cri

import (
	"io"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	berthv1 "berth/api/berth/v1"
	"berth/internal/image"
)

// admin is berth's own service.
type admin struct {
	berthv1.UnimplementedAdminServer
	images *image.Store
}

// LoadImage stores the images of an archive.
func (a *admin) LoadImage(stream grpc.ClientStreamingServer[berthv1.LoadImageRequest, berthv1.LoadImageResponse]) error {
	refs, err := a.images.Load(stream.Context(), &chunks{stream: stream})
	if err != nil {
		return err
	}
	return stream.SendAndClose(&berthv1.LoadImageResponse{Refs: refs})
}

// chunks reads the archive that a client sends.
type chunks struct {
	stream grpc.ClientStreamingServer[berthv1.LoadImageRequest, berthv1.LoadImageResponse]
	rest   []byte
}

func (c *chunks) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		req, err := c.stream.Recv()
		if err != nil {
			return 0, err // io.EOF at the end
		}
		c.rest = req.GetChunk()
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

var _ io.Reader = (*chunks)(nil)

// statuses of layers on the wire.
var layerStatus = map[image.Status]berthv1.PullProgress_Status{
	image.Waiting: berthv1.PullProgress_WAITING, image.Downloading: berthv1.PullProgress_DOWNLOADING,
	image.Downloaded: berthv1.PullProgress_DOWNLOADED, image.Exists: berthv1.PullProgress_EXISTS,
	image.Unpacking: berthv1.PullProgress_UNPACKING, image.Done: berthv1.PullProgress_DONE,
}

// PullImage pulls and tells how far it is. A client that goes away does not
// stop the pull for others.
func (a *admin) PullImage(req *berthv1.PullImageRequest, stream grpc.ServerStreamingServer[berthv1.PullProgress]) error {
	spec := &runtime.ImageSpec{Image: req.GetImage()}
	if err := validateImage("image", spec); err != nil {
		return err
	}
	var auth *runtime.AuthConfig
	if req.GetUsername()+req.GetPassword()+req.GetAuth()+req.GetIdentityToken()+req.GetRegistryToken() != "" {
		auth = &runtime.AuthConfig{
			Username: req.GetUsername(), Password: req.GetPassword(), Auth: req.GetAuth(),
			IdentityToken: req.GetIdentityToken(), RegistryToken: req.GetRegistryToken(), ServerAddress: req.GetServerAddress(),
		}
	}
	var sendErr error
	id, err := a.images.Pull(stream.Context(), image.PullRequest{Image: spec, Auth: auth, Progress: func(p image.Progress) {
		if sendErr == nil && p.Status != image.Done {
			sendErr = stream.Send(&berthv1.PullProgress{Digest: p.Digest, Status: layerStatus[p.Status], Offset: p.Offset, Total: p.Total})
		}
	}})
	if err != nil {
		return err
	}
	if sendErr != nil {
		return sendErr
	}
	return stream.Send(&berthv1.PullProgress{Status: berthv1.PullProgress_DONE, ImageId: id})
}
