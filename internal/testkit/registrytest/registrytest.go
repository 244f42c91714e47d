// Package registrytest is an image registry for tests: a real one in memory, on
// loopback, which can be told to fail. Whoever makes one closes it; Own does so
// by itself at the end of a test. Its methods may be called at any time by any
// goroutine, Close once.
package registrytest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// A Fault is what a request meets. The zero value is none.
type Fault struct {
	// Match picks requests: a part of the path, such as a digest or
	// "/manifests/". Empty picks every request.
	Match string
	// Method picks requests too; empty is any.
	Method string
	// Times is how often it acts; 0 is always. Then, where set, is the status
	// answered after that.
	Times, Then int

	// One of these is set.

	Status     int           // answered instead
	CutAfter   int64         // the connection breaks after that many bytes of the body
	HangAfter  int64         // nothing more comes after that many bytes (1: at once)
	BytesPerMS int           // slow
	Delay      time.Duration // before the request is handled
	Corrupt    bool          // the body's first byte is another one
	RetryAfter string        // header beside Status
}

// A Registry is an image registry in memory, on loopback.
type Registry struct {
	// Host is "127.0.0.1:PORT".
	Host string

	server *httptest.Server
	inner  http.Handler
	hang   chan struct{} // closed at Close

	mu       sync.Mutex // guards the rest
	faults   []*Fault
	requests map[string]int // "METHOD path" → how often
	user     string
	password string
	bearer   bool
	seen     []string // Authorization headers
}

// New starts a registry. Close ends it.
func New() (*Registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	r := &Registry{
		Host:     l.Addr().String(),
		inner:    registry.New(registry.Logger(log.New(io.Discard, "", 0))),
		hang:     make(chan struct{}),
		requests: map[string]int{},
	}
	r.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: r, ErrorLog: log.New(io.Discard, "", 0)}}
	r.server.Start()
	return r, nil
}

// Close ends the registry and every request that hangs in it.
func (r *Registry) Close() error {
	close(r.hang)
	r.server.CloseClientConnections()
	r.server.Close()
	return nil
}

// Own is a registry for one test, closed when it ends.
func Own(t testing.TB) *Registry {
	t.Helper()
	r, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// Ref is the reference of repo in this registry, as "repo:tag".
func (r *Registry) Ref(repo string) string { return r.Host + "/" + repo }

// Push stores an image under repo ("name:tag") and returns its reference by
// digest. Pushing bypasses faults and authorisation.
func (r *Registry) Push(repo string, img v1.Image) (string, error) {
	return r.push(repo, func(ref name.Reference, o ...remote.Option) (v1.Hash, error) {
		if err := remote.Write(ref, img, o...); err != nil {
			return v1.Hash{}, err
		}
		return img.Digest()
	})
}

// PushIndex is Push for an index.
func (r *Registry) PushIndex(repo string, idx v1.ImageIndex) (string, error) {
	return r.push(repo, func(ref name.Reference, o ...remote.Option) (v1.Hash, error) {
		if err := remote.WriteIndex(ref, idx, o...); err != nil {
			return v1.Hash{}, err
		}
		return idx.Digest()
	})
}

func (r *Registry) push(repo string, write func(name.Reference, ...remote.Option) (v1.Hash, error)) (string, error) {
	ref, err := name.NewTag(r.Ref(repo), name.Insecure)
	if err != nil {
		return "", err
	}
	digest, err := write(ref, remote.WithTransport(direct{r.inner}), remote.WithAuth(authn.Anonymous))
	if err != nil {
		return "", fmt.Errorf("push %s: %w", repo, err)
	}
	return ref.Context().Name() + "@" + digest.String(), nil
}

// direct calls the registry without a connection.
type direct struct{ handler http.Handler }

// RoundTrip implements http.RoundTripper.
func (d direct) RoundTrip(req *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	in := req.Clone(req.Context())
	if in.Body == nil {
		in.Body = http.NoBody
	}
	d.handler.ServeHTTP(rec, in)
	resp := rec.Result()
	resp.Request = req
	return resp, nil
}

// Fail adds a fault; the first that matches a request acts.
func (r *Registry) Fail(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, &f)
}

// Heal removes all faults and wants no authorisation any more.
func (r *Registry) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults, r.user, r.password, r.bearer = nil, "", "", false
}

// RequireBasic asks every client for a user and password.
func (r *Registry) RequireBasic(user, password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.user, r.password, r.bearer = user, password, false
}

// RequireToken asks every client for a bearer token, which the registry's
// token service gives for a user and password, or for the password as an
// identity (refresh) token.
func (r *Registry) RequireToken(user, password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.user, r.password, r.bearer = user, password, true
}

// Token is the bearer token that RequireToken wants.
func (r *Registry) Token() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return "token-of-" + r.user
}

// Requests counts the requests with this method whose path contains part.
func (r *Registry) Requests(method, part string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for key, times := range r.requests {
		m, p, _ := strings.Cut(key, " ")
		if m == method && strings.Contains(p, part) {
			n += times
		}
	}
	return n
}

// Authorizations are the Authorization headers that came in.
func (r *Registry) Authorizations() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.seen...)
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	fault := r.note(req)
	if fault.Delay > 0 {
		r.pause(req.Context(), fault.Delay)
	}
	if fault.Status != 0 {
		if fault.RetryAfter != "" {
			w.Header().Set("Retry-After", fault.RetryAfter)
		}
		http.Error(w, `{"errors":[{"code":"FAULT","message":"fault of the test"}]}`, fault.Status)
		return
	}
	if strings.HasSuffix(req.URL.Path, "/token") {
		r.token(w, req)
		return
	}
	if !r.authorised(w, req) {
		return
	}
	if fault.CutAfter > 0 || fault.HangAfter > 0 || fault.BytesPerMS > 0 || fault.Corrupt {
		w = &faulty{ResponseWriter: w, fault: fault, registry: r, ctx: req.Context()}
	}
	r.closeRange(req)
	r.inner.ServeHTTP(w, req)
}

// closeRange gives an open range ("bytes=5-") its end, which the registry in
// memory wants to see.
func (r *Registry) closeRange(req *http.Request) {
	start, ok := strings.CutSuffix(req.Header.Get("Range"), "-")
	if !ok {
		return
	}
	rec := httptest.NewRecorder()
	r.inner.ServeHTTP(rec, httptest.NewRequest(http.MethodHead, req.URL.Path, nil))
	if size, err := strconv.Atoi(rec.Header().Get("Content-Length")); err == nil {
		req.Header.Set("Range", fmt.Sprintf("%s-%d", start, size-1))
	}
}

func (r *Registry) note(req *http.Request) Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests[req.Method+" "+req.URL.Path]++
	if a := req.Header.Get("Authorization"); a != "" {
		r.seen = append(r.seen, a)
	}
	for i, f := range r.faults {
		if !strings.Contains(req.URL.Path, f.Match) || f.Method != "" && f.Method != req.Method {
			continue
		}
		found := *f
		if f.Times > 0 {
			if f.Times--; f.Times == 0 && f.Then != 0 {
				*f = Fault{Match: f.Match, Method: f.Method, Status: f.Then}
			} else if f.Times == 0 {
				r.faults = append(r.faults[:i:i], r.faults[i+1:]...)
			}
		}
		return found
	}
	return Fault{}
}

func (r *Registry) pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	case <-r.hang:
	}
}

func (r *Registry) authorised(w http.ResponseWriter, req *http.Request) bool {
	r.mu.Lock()
	user, password, bearer := r.user, r.password, r.bearer
	r.mu.Unlock()
	if user == "" {
		return true
	}
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	challenge := `Basic realm="test"`
	if bearer {
		want = "Bearer token-of-" + user
		scope := "repository:" + strings.TrimPrefix(path.Dir(path.Dir(req.URL.Path)), "/v2/") + ":pull"
		challenge = fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="%s"`, r.Host, scope)
	}
	if req.Header.Get("Authorization") == want {
		return true
	}
	w.Header().Set("WWW-Authenticate", challenge)
	http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
	return false
}

// token is the token service.
func (r *Registry) token(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	user, password := r.user, r.password
	r.mu.Unlock()
	u, p, ok := req.BasicAuth()
	if !ok && req.Method == http.MethodPost {
		u, p = req.FormValue("username"), req.FormValue("password")
		if req.FormValue("grant_type") == "refresh_token" {
			u, p = user, req.FormValue("refresh_token")
		}
	}
	if u != user || p != password {
		http.Error(w, `{"details":"incorrect username or password"}`, http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{ // a client that left gets nothing
		"token": "token-of-" + user, "access_token": "token-of-" + user, "expires_in": 300})
}

// errCut ends a body in its middle.
var errCut = errors.New("cut by the test")

// faulty spoils a body as it is written.
type faulty struct {
	http.ResponseWriter
	fault    Fault
	registry *Registry
	ctx      context.Context
	written  int64
}

// Write implements io.Writer.
func (f *faulty) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		n := len(p)
		limit := max(f.fault.CutAfter, f.fault.HangAfter)
		if limit > 0 {
			n = int(min(int64(n), limit-f.written))
		}
		if f.fault.BytesPerMS > 0 {
			n = min(n, 10*f.fault.BytesPerMS)
		}
		if n <= 0 {
			f.flush()
			if f.fault.CutAfter > 0 {
				panic(http.ErrAbortHandler)
			}
			f.registry.pause(f.ctx, time.Hour)
			return total, errCut
		}
		chunk := p[:n]
		if f.fault.Corrupt && f.written == 0 {
			chunk = append([]byte{chunk[0] ^ 0xff}, chunk[1:]...)
		}
		w, err := f.ResponseWriter.Write(chunk)
		total, f.written = total+w, f.written+int64(w)
		if err != nil {
			return total, err
		}
		if f.fault.BytesPerMS > 0 {
			f.flush()
			f.registry.pause(f.ctx, 10*time.Millisecond)
			if f.ctx.Err() != nil {
				return total, f.ctx.Err()
			}
		}
		p = p[n:]
	}
	return total, nil
}

func (f *faulty) flush() {
	if fl, ok := f.ResponseWriter.(http.Flusher); ok {
		fl.Flush()
	}
}
