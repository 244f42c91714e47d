package stream

import (
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// tokenTTL is how long a URL is good for.
	tokenTTL = time.Minute
	// maxTokens bounds the URLs that wait to be used.
	maxTokens = 1000
)

// kind is what a URL is for, and its first element.
type kind string

const (
	kindExec        kind = "exec"
	kindAttach      kind = "attach"
	kindPortForward kind = "portforward"
)

// tokens are the requests that wait for their client.
type tokens struct {
	mu sync.Mutex // guards waiting
	// waiting maps tokens to requests.
	waiting map[string]waiting
}

type waiting struct {
	kind    kind
	req     any
	expires time.Time
}

// issue returns a token for req. Too many waiting: ErrResourceExhausted.
func (t *tokens) issue(k kind, req any) (string, error) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting == nil {
		t.waiting = map[string]waiting{}
	}
	for token, w := range t.waiting {
		if now.After(w.expires) {
			delete(t.waiting, token)
		}
	}
	if len(t.waiting) >= maxTokens {
		return "", fmt.Errorf("%s: %d requests wait for their client already; try again: %w", k, len(t.waiting), errdefs.ErrResourceExhausted)
	}
	token := rand.Text()
	t.waiting[token] = waiting{k, req, now.Add(tokenTTL)}
	return token, nil
}

// redeem returns the request of a token, once.
func (t *tokens) redeem(k kind, token string) (any, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w, ok := t.waiting[token]
	if !ok || w.kind != k {
		return nil, false
	}
	delete(t.waiting, token)
	return w.req, time.Now().Before(w.expires)
}
