package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"berth/internal/logs"
	"berth/internal/record"
)

// finishLog moves into the log what a container that is gone had written and
// no daemon read.
func (s *Service) finishLog(c *record.Container) error {
	if _, err := os.Lstat(s.stdioDir(c.ID)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	io, err := logs.Open(s.stdioOptions(c))
	if err != nil {
		return err
	}
	io.Running()
	select {
	case <-io.Drained():
	case <-time.After(drainTimeout):
	}
	return io.Close()
}

// tidy removes the task and stdio of a container that does not run, where a
// crash came between its end and their removal.
func (s *Service) tidy(ctx context.Context, c *record.Container) error {
	_, err := s.loadTask(s.Engine.Context(ctx), c.ID)
	if err != nil && !notFound(err) {
		return err
	}
	_, stdio := os.Lstat(s.stdioDir(c.ID))
	if err != nil && errors.Is(stdio, os.ErrNotExist) {
		return nil
	}
	return errors.Join(s.clearTask(ctx, c.ID), s.dropStdio(ctx, c.ID, nil))
}

// Strays lists the containers that the machine holds and no record names:
// directories, and containers and snapshots in containerd that this daemon
// marked.
func (s *Service) Strays(ctx context.Context) ([]string, error) {
	ctx = s.Engine.Context(ctx)
	strays := map[string]bool{}
	note := func(name string) {
		id := ownerOf(name)
		if _, err := s.Store.Containers.Get(id); notFound(err) {
			strays[id] = true
		}
	}
	for _, dir := range []string{s.Paths.Containers(), s.Paths.ContainerStates()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			note(e.Name())
		}
	}
	if err := s.markedInContainerd(ctx, note); err != nil {
		return nil, err
	}
	list := make([]string, 0, len(strays))
	for id := range strays {
		list = append(list, id)
	}
	return list, nil
}

// markedInContainerd calls note with the name of each container and snapshot
// that carries this daemon's label.
func (s *Service) markedInContainerd(ctx context.Context, note func(id string)) error {
	filter := fmt.Sprintf("labels.%q==%q", LabelRoot, s.Paths.Root)
	containers, err := s.client.ContainerService().List(ctx, filter)
	if err != nil {
		return fmt.Errorf("list containers of containerd: %w", err)
	}
	for _, c := range containers {
		if c.Labels[kindLabel] != kindSandbox { // those go with their sandboxes
			note(c.ID)
		}
	}
	err = s.client.SnapshotService(s.Snapshotter).Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		note(info.Name)
		return nil
	}, filter)
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	return nil
}
