package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/internal/image/layer"
)

// discardTimeout bounds the removal of what a layer that failed has left.
const discardTimeout = 10 * time.Second

// labelParent is containerd's, on a snapshot that was unpacked without its
// parent.
const labelParent = "containerd.io/snapshot/parent-chain-id"

// A layerPull is one layer on its way. Its methods follow each other: fetch,
// commit once ready is closed, and discard.
type layerPull struct {
	*streamer
	fetcher         remotes.Fetcher
	desc            ocispec.Descriptor
	diffID          digest.Digest
	chainID, parent string // parent is empty for the lowest
	ready           chan struct{}

	unlock  func() // of the chain ID; nil when it is not held
	key     string // of the active snapshot, empty when there is none
	dir     string // of that
	implied []string
}

// fetch makes an active snapshot of what the layer holds. Where the image's
// snapshot is here already there is nothing to do, nor to download.
func (l *layerPull) fetch(ctx context.Context) error {
	lock := "sn://" + l.store.opts.Snapshotter + "/" + l.chainID
	if err := l.store.chains.Lock(ctx, lock); err != nil {
		return err
	}
	l.unlock = func() { l.store.chains.Unlock(lock) }
	if err := l.prepare(ctx); err != nil || l.key == "" {
		return err
	}
	blob := "blob://" + l.desc.Digest.String()
	if err := l.store.chains.Lock(ctx, blob); err != nil {
		return err
	}
	defer l.store.chains.Unlock(blob)
	err := l.fill(context.WithValue(ctx, layerKey{}, l.desc.Digest))
	if err != nil {
		return err
	}
	l.tracker.finish(l.desc.Digest)
	return nil
}

// labels are those that containerd's unpacker gives a snapshot. What would have
// it change owners is not taken from a registry.
func (l *layerPull) labels() map[string]string {
	all := snapshots.FilterInheritedLabels(l.desc.Annotations)
	if all == nil {
		all = map[string]string{}
	}
	delete(all, snapshots.LabelSnapshotUIDMapping)
	delete(all, snapshots.LabelSnapshotGIDMapping)
	all[snapshots.LabelSnapshotRef] = l.chainID
	all[snapshots.LabelSnapshotDiffID] = l.diffID.String()
	if l.parent != "" {
		all[labelParent] = l.parent
	}
	return all
}

// prepare makes the active snapshot; key stays empty where the committed one
// exists.
func (l *layerPull) prepare(ctx context.Context) error {
	key := fmt.Sprintf(snapshots.UnpackKeyFormat, rand.Text(), l.chainID)
	mounts, err := l.snapshots.Prepare(ctx, key, "", snapshots.WithLabels(l.labels()))
	if errdefs.IsAlreadyExists(err) {
		return nil // the lease holds it now
	}
	if err != nil {
		return fmt.Errorf("snapshot for layer %s: %w", l.desc.Digest, err)
	}
	l.key = key
	if len(mounts) != 1 || mounts[0].Type != "bind" || mounts[0].ReadOnly() {
		return fmt.Errorf("snapshot for layer %s: snapshotter %s gives no plain directory: %w", l.desc.Digest, l.store.opts.Snapshotter, errdefs.ErrInternal)
	}
	l.dir = mounts[0].Source
	return nil
}

// fill writes the layer into the snapshot, from the registry or from the
// content store, where its blob is afterwards.
func (l *layerPull) fill(ctx context.Context) (err error) {
	ref := remotes.MakeRefKey(ctx, l.desc)
	w, err := content.OpenWriter(ctx, l.content, content.WithRef(ref), content.WithDescriptor(l.desc))
	if errdefs.IsAlreadyExists(err) {
		return l.unpackStored(ctx)
	}
	if err != nil {
		return err
	}
	status, err := w.Status()
	if err != nil {
		return errors.Join(err, w.Close())
	}
	if status.Offset > 0 || l.desc.Size <= 0 || len(l.desc.Data) > 0 {
		// Some of it is here: containerd's own way.
		if err := w.Close(); err != nil {
			return err
		}
		if err := remotes.Fetch(ctx, l.content, l.fetcher, l.desc); err != nil && !errdefs.IsAlreadyExists(err) {
			return err
		}
		return l.unpackStored(ctx)
	}
	if err := l.stream(ctx, w); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTimeout)
		defer cancel()
		cleanup := errors.Join(w.Close(), l.content.Abort(ctx, ref))
		if cleanup != nil && !errdefs.IsNotFound(cleanup) {
			err = errors.Join(err, cleanup)
		}
		return err
	}
	_, err = l.source(ctx, l.desc)
	return err
}

// stream downloads into w and unpacks what comes. Both are verified before
// either is committed.
func (l *layerPull) stream(ctx context.Context, w content.Writer) error {
	body, err := l.fetcher.Fetch(ctx, l.desc)
	if err != nil {
		return err
	}
	pipe := layer.NewPipe()
	downloaded := make(chan error, 1)
	go func() {
		err := l.download(body, w, pipe)
		pipe.End(err)
		if s, ok := w.(content.Syncer); ok && err == nil {
			err = s.Sync() // while the rest is unpacked
		}
		downloaded <- errors.Join(err, body.Close())
	}()
	unpackErr := l.unpack(ctx, pipe)
	if unpackErr != nil {
		// Whether it is what was asked for says more than what it is.
		_, _ = io.Copy(io.Discard, pipe)
	}
	pipe.Close()
	if err := <-downloaded; err != nil {
		return err
	}
	if unpackErr != nil {
		return unpackErr
	}
	err = w.Commit(ctx, l.desc.Size, l.desc.Digest, content.WithLabels(map[string]string{labels.LabelUncompressed: l.diffID.String()}))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("commit of layer %s: %w", l.desc.Digest, err)
	}
	return nil
}

// download writes the blob into the content store and hands it on.
func (l *layerPull) download(body io.Reader, w content.Writer, pipe *layer.Pipe) error {
	var size int64
	see := func(p []byte) error {
		size += int64(len(p))
		_, err := w.Write(p)
		return err
	}
	body = io.LimitReader(body, l.desc.Size+1)
	for {
		err := pipe.Fill(body, see)
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("layer %s: %w", l.desc.Digest, err)
		}
	}
	if size < l.desc.Size {
		return fmt.Errorf("layer %s ends after %d of %d bytes: %w", l.desc.Digest, size, l.desc.Size, io.ErrUnexpectedEOF)
	}
	if size > l.desc.Size {
		return fmt.Errorf("layer %s has more than its %d bytes: %w", l.desc.Digest, l.desc.Size, errdefs.ErrFailedPrecondition)
	}
	if got := w.Digest(); got != l.desc.Digest && l.desc.Digest.Algorithm() == digest.Canonical {
		return fmt.Errorf("layer %s came with digest %s: %w", l.desc.Digest, got, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// unpackStored unpacks a blob of the content store.
func (l *layerPull) unpackStored(ctx context.Context) (err error) {
	blob, err := l.content.ReaderAt(ctx, l.desc)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	if err := l.unpack(ctx, content.NewReader(blob)); err != nil {
		return err
	}
	_, err = l.content.Update(ctx, content.Info{
		Digest: l.desc.Digest, Labels: map[string]string{labels.LabelUncompressed: l.diffID.String()},
	}, "labels."+labels.LabelUncompressed)
	if err != nil {
		return err
	}
	_, err = l.source(ctx, l.desc)
	return err
}

// unpack writes the layer's files and verifies that it is the one that the
// configuration names.
func (l *layerPull) unpack(ctx context.Context, r io.Reader) error {
	s := layer.NewStream(r, streamed[l.desc.MediaType], l.desc.Size)
	defer s.Close()
	implied, err := layer.Apply(ctx, l.dir, s, layer.Options{Lowest: l.parent == ""})
	if err != nil {
		return fmt.Errorf("unpack layer %s: %w", l.desc.Digest, err)
	}
	got, err := s.Digest()
	if err != nil {
		return fmt.Errorf("unpack layer %s: %w", l.desc.Digest, err)
	}
	if got != l.diffID {
		return fmt.Errorf("layer %s unpacks to digest %s, the image's configuration says %s: %w", l.desc.Digest, got, l.diffID, errdefs.ErrFailedPrecondition)
	}
	l.implied = implied
	return nil
}

// commit waits until the layer is ready and makes its snapshot the image's, on
// top of the one below, which is committed before.
func (l *layerPull) commit(ctx context.Context) error {
	select {
	case <-l.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	if l.key == "" {
		return l.discard(ctx)
	}
	if err := l.inherit(ctx); err != nil {
		return err
	}
	opts := []snapshots.Opt{snapshots.WithLabels(l.labels())}
	if l.parent != "" {
		opts = append(opts, snapshots.WithParent(l.parent))
	}
	err := l.snapshots.Commit(ctx, l.chainID, l.key, opts...)
	if errdefs.IsAlreadyExists(err) {
		return l.discard(ctx)
	}
	if err != nil {
		return fmt.Errorf("commit of the snapshot of layer %s: %w", l.desc.Digest, err)
	}
	l.key = ""
	return l.discard(ctx)
}

// inherit looks at the layers below for what this one did not say.
func (l *layerPull) inherit(ctx context.Context) (err error) {
	if l.parent == "" || len(l.implied) == 0 {
		return nil
	}
	key := l.key + "-parent"
	mounts, err := l.snapshots.View(ctx, key, l.parent)
	if err != nil {
		return fmt.Errorf("view of the layers below %s: %w", l.desc.Digest, err)
	}
	defer func() { err = errors.Join(err, l.snapshots.Remove(ctx, key)) }()
	return layer.Inherit(l.dir, l.implied, directories(mounts))
}

// directories are those of the layers of a view, the uppermost first.
func directories(mounts []mount.Mount) []string {
	if len(mounts) != 1 {
		return nil
	}
	for _, o := range mounts[0].Options {
		if lower, ok := strings.CutPrefix(o, "lowerdir="); ok {
			return strings.Split(lower, ":")
		}
	}
	return []string{mounts[0].Source}
}

// discard removes what was not committed, and lets others at the snapshot. It
// may be called again.
func (l *layerPull) discard(ctx context.Context) (err error) {
	if l.key != "" {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTimeout)
		defer cancel()
		err = l.snapshots.Remove(ctx, l.key)
		if errdefs.IsNotFound(err) {
			err = nil
		}
		if err != nil {
			err = fmt.Errorf("removal of the snapshot of layer %s: %w", l.desc.Digest, err)
		}
		l.key = ""
	}
	if l.unlock != nil {
		l.unlock()
		l.unlock = nil
	}
	return err
}
