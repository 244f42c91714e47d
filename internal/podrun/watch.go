package podrun

import (
	"context"
	"sync"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pollInterval is how often to look where no event says to, as with a server
// that has none, or that is being restarted.
const pollInterval = time.Second

// A watcher tells that something may have changed.
type watcher struct {
	wg sync.WaitGroup

	mu   sync.Mutex // guards next
	next chan struct{}
}

// watch follows the server's events until ctx ends.
func watch(ctx context.Context, server runtime.RuntimeServiceClient) *watcher {
	w := &watcher{next: make(chan struct{})}
	w.wg.Go(func() {
		tick := time.NewTicker(pollInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				w.wake()
			}
		}
	})
	w.wg.Go(func() {
		for ctx.Err() == nil {
			if stream, err := server.GetContainerEvents(ctx, &runtime.GetEventsRequest{}); err == nil {
				w.follow(stream)
			}
			// An error is no news; the ticks go on.
			_ = pause(ctx, pollInterval)
		}
	})
	return w
}

func (w *watcher) follow(stream runtime.RuntimeService_GetContainerEventsClient) {
	for {
		if _, err := stream.Recv(); err != nil {
			return
		}
		w.wake()
	}
}

// changed is closed when there is reason to look again. It is taken before one
// looks.
func (w *watcher) changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.next
}

func (w *watcher) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.next)
	w.next = make(chan struct{})
}

// wait returns when the watcher has ended, after its context.
func (w *watcher) wait() { w.wg.Wait() }
