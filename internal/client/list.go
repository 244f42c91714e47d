package client

import (
	"context"
	"sync"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Set lists the pods and the containers.
func (c *Client) Set(ctx context.Context) (*Set, error) {
	var (
		set     Set
		podsErr error
		wg      sync.WaitGroup
	)
	wg.Go(func() {
		var resp *runtime.ListPodSandboxResponse
		resp, podsErr = c.Runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
		set.Pods = resp.GetItems()
	})
	resp, err := c.Runtime.ListContainers(ctx, &runtime.ListContainersRequest{})
	wg.Wait()
	if podsErr != nil {
		return nil, podsErr
	}
	if err != nil {
		return nil, err
	}
	set.Containers = resp.GetContainers()
	return &set, nil
}

// Image finds an image by what a user types; the server's own resolution of
// references comes first.
func (c *Client) Image(ctx context.Context, ref string) (*runtime.Image, error) {
	status, err := c.Images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err == nil && status.GetImage() != nil {
		return status.Image, nil
	}
	list, listErr := c.Images.ListImages(ctx, &runtime.ListImagesRequest{})
	if listErr != nil {
		return nil, listErr
	}
	return FindImage(list.GetImages(), ref)
}
