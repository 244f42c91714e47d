package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pull pulls an image again and again. Between two pulls it is removed, its
// garbage collected, and what is dirty written back, all outside of the time.
func (b *bench) pull(ctx context.Context, key string, make func() (v1.Image, error)) error {
	img, err := make()
	if err != nil {
		return err
	}
	repo := "bench/" + key + ":1"
	if _, err := b.registry.Push(repo, img); err != nil {
		return err
	}
	runtime.GC() // what making it took is not to be collected while others are measured
	spec := &cri.ImageSpec{Image: b.registry.Ref(repo)}
	return b.alternate(ctx, b.plan.pulls, func(s *server) error {
		if err := b.settle(); err != nil {
			return err
		}
		began := time.Now()
		err := s.pull(ctx, spec)
		took := time.Since(began)
		if err != nil {
			if ctx.Err() == nil {
				b.results.fail(s.name, key, err)
			}
			return nil
		}
		b.results.add(s.name, key, milliseconds(took))
		return s.forgetImage(ctx, spec)
	})
}

func (s *server) pull(ctx context.Context, spec *cri.ImageSpec) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := s.images.PullImage(ctx, &cri.PullImageRequest{Image: spec})
	return err
}

func (s *server) forgetImage(ctx context.Context, spec *cri.ImageSpec) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := s.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec}); err != nil {
		return fmt.Errorf("remove image %s of %s: %w", spec.Image, s.name, err)
	}
	return s.collect(ctx)
}

// settle writes back what is dirty on the servers' file system, so that nobody
// pays for what was measured before.
func (b *bench) settle() (err error) {
	dir, err := os.Open(b.workspace.Base)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", b.workspace.Base, err)
	}
	return nil
}
