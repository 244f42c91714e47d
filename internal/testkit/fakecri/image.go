package fakecri

import (
	"context"
	"errors"
	"io"
	"slices"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	berthv1 "berth/api/berth/v1"
)

// ListImages implements runtime.ImageServiceServer, as do the methods below.
func (s *Server) ListImages(context.Context, *runtime.ListImagesRequest) (*runtime.ListImagesResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &runtime.ListImagesResponse{Images: slices.Clone(s.images)}, nil
}

func (s *Server) ImageStatus(_ context.Context, req *runtime.ImageStatusRequest) (*runtime.ImageStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, img := range s.images {
		if ref := req.GetImage().GetImage(); img.Id == ref || slices.Contains(img.RepoTags, ref) {
			return &runtime.ImageStatusResponse{Image: img}, nil
		}
	}
	return &runtime.ImageStatusResponse{}, nil
}

func (s *Server) RemoveImage(_ context.Context, req *runtime.RemoveImageRequest) (*runtime.RemoveImageResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images = slices.DeleteFunc(s.images, func(i *runtime.Image) bool { return i.Id == req.GetImage().GetImage() })
	return &runtime.RemoveImageResponse{}, nil
}

// admin is berth's own service; it has a PullImage too.
type admin struct {
	berthv1.UnimplementedAdminServer
	server *Server
}

// PullImage implements berthv1.AdminServer.
func (a admin) PullImage(req *berthv1.PullImageRequest, stream berthv1.Admin_PullImageServer) error {
	s := a.server
	s.mu.Lock()
	s.calls = append(s.calls, "Pull "+req.Image)
	s.mu.Unlock()
	if err := s.Fail["Pull "+req.Image]; err != nil {
		return err
	}
	for _, p := range s.Progress {
		if err := stream.Send(p); err != nil {
			return err
		}
	}
	img := &runtime.Image{Id: "sha256:pulled", RepoTags: []string{req.Image}, Size: 1}
	s.AddImage(img)
	return stream.Send(&berthv1.PullProgress{Status: berthv1.PullProgress_DONE, ImageId: img.Id})
}

// LoadImage implements berthv1.AdminServer.
func (a admin) LoadImage(stream berthv1.Admin_LoadImageServer) error {
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		a.server.mu.Lock()
		a.server.loaded += len(req.Chunk)
		a.server.mu.Unlock()
	}
	if err := a.server.Fail["LoadImage"]; err != nil {
		return err
	}
	return stream.SendAndClose(&berthv1.LoadImageResponse{Refs: []string{"docker.io/library/loaded:1"}})
}
