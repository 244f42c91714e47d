package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/steps"
)

// opPull is the operation's name in the journal.
const opPull = "PullImage"

// A PullRequest asks for an image.
type PullRequest struct {
	// Image is required.
	Image *runtime.ImageSpec
	// Auth may be nil.
	Auth *runtime.AuthConfig
	// Progress, where set, is called from the goroutine that called Pull.
	Progress func(Progress)
}

// A pull is one download that callers share.
type pull struct {
	key     string
	cancel  context.CancelFunc
	tracker *tracker
	done    chan struct{}
	id      string // with err, set before done is closed
	err     error

	// Guarded by Store.mu.
	callers int
	abandon *time.Timer
}

// Pull makes the image present, unpacked and recorded, and returns its ID.
// Callers that ask for one reference with the same credentials share one
// download. A caller whose ctx ends gets its error while the work goes on for
// the others, and for Options.AbandonAfter for a retry.
//
// Errors: ErrInvalidArgument for a bad reference or credentials that cannot be
// read, ErrNotFound, ErrUnauthenticated and ErrPermissionDenied as the registry
// says, context.DeadlineExceeded (an *ErrNoProgress) where it hangs.
func (s *Store) Pull(ctx context.Context, req PullRequest) (string, error) {
	named, err := parseReference(req.Image.GetImage())
	if err != nil {
		return "", err
	}
	creds, err := parseAuth(req.Auth)
	if err != nil {
		return "", fmt.Errorf("pull of image %s: %w", named, err)
	}
	p, err := s.join(named, creds)
	if err != nil {
		return "", err
	}
	defer s.leave(p)
	return p.wait(ctx, named, req.Progress)
}

// join begins a pull or finds the one under way.
func (s *Store) join(named reference.Named, creds credentials) (*pull, error) {
	key := named.String() + " " + creds.key()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("pull of image %s: berth is stopping: %w", named, errdefs.ErrUnavailable)
	}
	p := s.pulls[key]
	if p == nil {
		ctx, cancel := context.WithCancel(s.base)
		p = &pull{key: key, cancel: cancel, tracker: newTracker(), done: make(chan struct{})}
		s.pulls[key] = p
		s.wg.Go(func() { s.run(ctx, p, named, creds) })
	}
	p.callers++
	if p.abandon != nil {
		p.abandon.Stop()
		p.abandon = nil
	}
	return p, nil
}

// leave ends a caller's part; without callers the pull is cancelled in a while.
func (s *Store) leave(p *pull) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.callers--
	select {
	case <-p.done:
		return
	default:
	}
	if p.callers == 0 {
		p.abandon = time.AfterFunc(s.opts.AbandonAfter, func() { s.abandoned(p) })
	}
}

func (s *Store) abandoned(p *pull) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.callers == 0 {
		p.cancel()
		s.forgetLocked(p) // who comes now is not to share its end
	}
}

// forgetLocked is called with mu held.
func (s *Store) forgetLocked(p *pull) {
	if s.pulls[p.key] == p {
		delete(s.pulls, p.key)
	}
}

func (p *pull) wait(ctx context.Context, named reference.Named, report func(Progress)) (string, error) {
	r := &reporter{report: report, told: map[string]Progress{}}
	var tick <-chan time.Time
	if report != nil {
		ticker := time.NewTicker(progressInterval)
		defer ticker.Stop()
		tick = ticker.C
	}
	for {
		select {
		case <-p.done:
			r.tell(p.tracker.state())
			if p.err == nil && report != nil {
				report(Progress{Status: Done, ImageID: p.id})
			}
			return p.id, p.err
		case <-ctx.Done():
			return "", fmt.Errorf("pull of image %s goes on; call again to join it: %w", named, ctx.Err())
		case <-tick:
			r.tell(p.tracker.state())
		}
	}
}

func (s *Store) run(ctx context.Context, p *pull, named reference.Named, creds credentials) {
	defer p.cancel()
	id, err := s.pull(ctx, p.tracker, named, creds)
	s.mu.Lock()
	defer s.mu.Unlock()
	p.id, p.err = id, err
	s.forgetLocked(p)
	if p.abandon != nil {
		p.abandon.Stop()
	}
	close(p.done)
}

// pull does the work. The record step is last but the lease's end: what is
// recorded is whole.
func (s *Store) pull(ctx context.Context, t *tracker, named reference.Named, creds credentials) (string, error) {
	release, err := s.refs.Acquire(ctx, named.String())
	if err != nil {
		return "", err
	}
	defer release()
	var (
		attempt = newAttempt(named.String())
		lease   = pullLease(attempt)
		img     containerd.Image
		id      string
	)
	start := time.Now()
	err = s.steps.Run(ctx, opPull, attempt,
		steps.Step{
			Name: "lease",
			Do:   func(ctx context.Context) error { return s.takeLease(ctx, lease) },
			Undo: func(ctx context.Context) error { return s.dropLease(ctx, lease) },
		},
		steps.Step{Name: "fetch", Do: func(ctx context.Context) (err error) {
			img, err = s.fetch(leases.WithLease(ctx, lease), t, named, creds)
			return err
		}},
		steps.Step{Name: "record", Do: func(ctx context.Context) error {
			info, err := s.describe(ctx, img.Target())
			if err != nil {
				return err
			}
			id = info.id
			return s.record(ctx, recordNames(named, img.Target().Digest, id), img.Target())
		}},
		steps.Step{Name: "release", Do: func(ctx context.Context) error { return s.dropLease(ctx, lease) }},
	)
	if err != nil {
		return "", err
	}
	s.log.Info("image pulled", "image", named.String(), "id", id, "took", time.Since(start))
	return id, nil
}

// Undo gives the steps that take back what op left half made on object, for
// the reconciler after a crash. It may run beside a new pull of the reference,
// which has another lease and another entry in the journal. For an op that is
// not of images it is nil.
func (s *Store) Undo(op, object string) []steps.Step {
	if op != opPull {
		return nil // a removal is finished by its retry, a load by Sweep
	}
	return []steps.Step{{
		Name: "lease",
		Undo: func(ctx context.Context) error { return s.dropLease(ctx, pullLease(object)) },
	}}
}

// fetch downloads and unpacks, overlapping the two.
func (s *Store) fetch(ctx context.Context, t *tracker, named reference.Named, creds credentials) (containerd.Image, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	dog := &watchdog{timeout: s.opts.ProgressTimeout, cancel: cancel, waiting: map[*wait]struct{}{}}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		dog.run(ctx)
	}()
	defer func() {
		cancel(nil)
		<-stopped
	}()
	net := &session{named: named, creds: creds, tracker: t, dog: dog}
	defer net.close()
	img, err := s.download(ctx, t, named, net.resolver(ctx, s.opts.RegistryDirs))
	if err != nil {
		if stalled := new(ErrNoProgress); errors.As(context.Cause(ctx), &stalled) {
			err = stalled
		}
		return nil, pullError(named, creds, err)
	}
	t.fetched()
	return img, nil
}

// download unpacks the layers itself where it can, and leaves it to containerd
// where it cannot.
func (s *Store) download(ctx context.Context, t *tracker, named reference.Named, resolver remotes.Resolver) (containerd.Image, error) {
	options := []containerd.RemoteOpt{
		containerd.WithResolver(resolver),
		containerd.WithPlatformMatcher(s.platform),
		containerd.WithPullSnapshotter(s.opts.Snapshotter),
		containerd.WithPullLabels(s.labels(named.String())),
		containerd.WithDownloadLimiter(s.limiter),
		containerd.WithImageHandler(images.HandlerFunc(limitSizes)),
	}
	stream, err := s.canStream(ctx)
	if err != nil {
		return nil, err
	}
	if stream {
		st, err := s.newStreamer(t, resolver, named.String())
		if err != nil {
			return nil, err
		}
		wrap := func(h images.Handler) images.Handler { return st.wrap(t.wrap(h)) }
		img, err := s.client.Pull(ctx, named.String(), append(slices.Clip(options), containerd.WithImageHandlerWrapper(wrap))...)
		if !errors.Is(err, errNotStreamed) {
			return img, err
		}
	}
	return s.client.Pull(ctx, named.String(), append(options,
		containerd.WithPullUnpack,
		containerd.WithImageHandlerWrapper(t.wrap),
		containerd.WithUnpackOpts([]containerd.UnpackOpt{containerd.WithUnpackDuplicationSuppressor(&s.chains)}),
	)...)
}

// limitSizes refuses manifests and configurations too large to be read into
// memory, before they are downloaded: the registry chooses their size.
func limitSizes(_ context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	limit, what := int64(0), ""
	switch {
	case images.IsManifestType(desc.MediaType), images.IsIndexType(desc.MediaType):
		limit, what = maxManifestSize, "manifest"
	case images.IsConfigType(desc.MediaType):
		limit, what = maxConfigSize, "configuration"
	default:
		return nil, nil
	}
	if desc.Size > limit {
		return nil, fmt.Errorf("%s %s has %d bytes, more than the %d allowed: %w", what, desc.Digest, desc.Size, limit, errdefs.ErrFailedPrecondition)
	}
	return nil, nil
}
