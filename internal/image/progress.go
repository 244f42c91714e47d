package image

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Status is where a layer is, or the whole image.
type Status string

// The states of a layer; Unpacking and Done are of the image.
const (
	Waiting     Status = "waiting"
	Downloading Status = "downloading"
	Downloaded  Status = "downloaded"
	Exists      Status = "exists" // was here before
	Unpacking   Status = "unpacking"
	Done        Status = "done"
)

// Progress is the state of one layer; with Digest empty, of the whole image.
type Progress struct {
	Digest        string
	Status        Status
	Offset, Total int64
	ImageID       string // with Done
}

// progressInterval is the least time between two reports to one caller.
const progressInterval = 100 * time.Millisecond

// layerKey is the context key by which a transport knows whose bytes it reads.
type layerKey struct{}

// A tracker follows the layers of one pull.
type tracker struct {
	mu       sync.Mutex // guards the rest
	order    []digest.Digest
	layers   map[digest.Digest]*Progress
	complete bool
}

func newTracker() *tracker { return &tracker{layers: map[digest.Digest]*Progress{}} }

// wrap makes a handler that notes the layers it meets.
func (t *tracker) wrap(h images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if images.IsLayerType(desc.MediaType) {
			t.add(desc)
		}
		children, err := h.Handle(context.WithValue(ctx, layerKey{}, desc.Digest), desc)
		if err != nil {
			return nil, err
		}
		for _, child := range children {
			if images.IsLayerType(child.MediaType) {
				t.add(child)
			}
		}
		if images.IsLayerType(desc.MediaType) {
			t.finish(desc.Digest)
		}
		return children, nil
	})
}

func (t *tracker) add(desc ocispec.Descriptor) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.layers[desc.Digest] != nil {
		return
	}
	t.order = append(t.order, desc.Digest)
	t.layers[desc.Digest] = &Progress{Digest: desc.Digest.String(), Status: Waiting, Total: desc.Size}
}

func (t *tracker) read(layer digest.Digest, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.layers[layer]; l != nil {
		l.Status = Downloading
		l.Offset = min(l.Offset+int64(n), l.Total)
	}
}

func (t *tracker) finish(layer digest.Digest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.layers[layer]; l != nil {
		l.end()
	}
}

func (l *Progress) end() {
	switch l.Status {
	case Waiting:
		l.Status = Exists
	case Downloading:
		l.Status = Downloaded
	}
	l.Offset = l.Total
}

// fetched notes that all is here: layers never asked for were not needed.
func (t *tracker) fetched() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.complete = true
	for _, l := range t.layers {
		l.end()
	}
}

// state is the layers in their order, and the image once all are downloaded.
func (t *tracker) state() []Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []Progress
	ready := len(t.order) > 0
	for _, d := range t.order {
		l := *t.layers[d]
		all = append(all, l)
		ready = ready && (l.Status == Downloaded || l.Status == Exists)
	}
	if ready {
		all = append(all, Progress{Status: Unpacking})
	}
	return all
}

// A reporter tells one caller what changed. It is called from that caller's
// goroutine alone, so that a slow caller delays nobody else.
type reporter struct {
	report func(Progress)
	told   map[string]Progress
}

func (r *reporter) tell(state []Progress) {
	if r.report == nil {
		return
	}
	for _, p := range state {
		if r.told[p.Digest] != p {
			r.told[p.Digest] = p
			r.report(p)
		}
	}
}

// ErrNoProgress is a registry that stopped answering.
type ErrNoProgress struct {
	Host  string
	What  string // the layer's digest, or the path asked for
	After time.Duration
}

func (e *ErrNoProgress) Error() string {
	return fmt.Sprintf("no progress for %s with %s from %s: the registry or the network hangs; registry.progress_timeout sets how long to wait", e.After, e.What, e.Host)
}

// Is makes it a deadline that was exceeded.
func (e *ErrNoProgress) Is(target error) bool { return target == context.DeadlineExceeded }

// A watchdog ends a pull one of whose requests has been waiting for the
// network too long. Time spent elsewhere, as behind a slow disk, is not
// counted.
type watchdog struct {
	timeout time.Duration
	cancel  context.CancelCauseFunc

	mu      sync.Mutex // guards waiting
	waiting map[*wait]struct{}
}

type wait struct {
	host, what string
	since      time.Time
}

// begin notes that something waits for the network; end is called when it no
// longer does.
func (w *watchdog) begin(host, what string) (end func()) {
	entry := &wait{host, what, time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting[entry] = struct{}{}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.waiting, entry)
	}
}

// run looks until ctx ends.
func (w *watchdog) run(ctx context.Context) {
	if w.timeout < 0 {
		return
	}
	tick := time.NewTicker(max(w.timeout/4, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if late := w.late(); late != nil {
			w.cancel(&ErrNoProgress{late.host, late.what, w.timeout})
			return
		}
	}
}

func (w *watchdog) late() *wait {
	w.mu.Lock()
	defer w.mu.Unlock()
	var late []*wait
	for entry := range w.waiting {
		if time.Since(entry.since) > w.timeout {
			late = append(late, entry)
		}
	}
	if len(late) == 0 {
		return nil
	}
	return slices.MinFunc(late, func(a, b *wait) int { return a.since.Compare(b.since) })
}
