package cri

import (
	"context"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/image"
)

// ListImages implements the CRI.
func (s *Server) ListImages(ctx context.Context, req *runtime.ListImagesRequest) (*runtime.ListImagesResponse, error) {
	ref := req.GetFilter().GetImage().GetImage()
	if ref == "" {
		list, err := s.Images.List(ctx)
		return &runtime.ListImagesResponse{Images: list}, err
	}
	img, err := s.Images.Get(ctx, ref)
	if errdefs.IsNotFound(err) {
		return &runtime.ListImagesResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	return &runtime.ListImagesResponse{Images: []*runtime.Image{img.Proto}}, nil
}

// ImageStatus implements the CRI: an image that is not here is an answer
// without one.
func (s *Server) ImageStatus(ctx context.Context, req *runtime.ImageStatusRequest) (*runtime.ImageStatusResponse, error) {
	if err := validateImage("image", req.GetImage()); err != nil {
		return nil, err
	}
	img, err := s.Images.Get(ctx, req.GetImage().GetImage())
	if errdefs.IsNotFound(err) {
		return &runtime.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &runtime.ImageStatusResponse{Image: img.Proto}
	if req.GetVerbose() {
		resp.Info, err = img.Info()
	}
	return resp, err
}

// PullImage implements the CRI.
func (s *Server) PullImage(ctx context.Context, req *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
	if err := validateImage("image", req.GetImage()); err != nil {
		return nil, err
	}
	id, err := s.Images.Pull(ctx, image.PullRequest{Image: req.GetImage(), Auth: req.GetAuth()})
	if err != nil {
		return nil, err
	}
	return &runtime.PullImageResponse{ImageRef: id}, nil
}

// RemoveImage implements the CRI.
func (s *Server) RemoveImage(ctx context.Context, req *runtime.RemoveImageRequest) (*runtime.RemoveImageResponse, error) {
	if err := validateImage("image", req.GetImage()); err != nil {
		return nil, err
	}
	return &runtime.RemoveImageResponse{}, s.Images.Remove(ctx, req.GetImage().GetImage())
}

// ImageFsInfo implements the CRI.
func (s *Server) ImageFsInfo(ctx context.Context, _ *runtime.ImageFsInfoRequest) (*runtime.ImageFsInfoResponse, error) {
	images, err := s.Images.FsInfo(ctx)
	if err != nil {
		return nil, err
	}
	containers, err := s.Images.ContainerFsInfo(ctx)
	return &runtime.ImageFsInfoResponse{ImageFilesystems: images, ContainerFilesystems: containers}, err
}
