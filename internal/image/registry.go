package image

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// A session is the connections of one pull.
type session struct {
	named   reference.Named
	creds   credentials
	tracker *tracker
	dog     *watchdog

	mu         sync.Mutex // guards transports
	transports []*transport
}

// resolver reads dirs as containerd reads certs.d: mirrors, plain http, CAs. A
// registry on loopback is spoken to in plain http without any configuration.
func (n *session) resolver(ctx context.Context, dirs []string) remotes.Resolver {
	hosts := config.ConfigureHosts(ctx, config.HostOptions{
		HostDir:      hostDir(dirs),
		Credentials:  n.creds.lookup,
		UpdateClient: n.watch,
	})
	return docker.NewResolver(docker.ResolverOptions{Hosts: func(host string) ([]docker.RegistryHost, error) {
		found, err := hosts(host)
		if err != nil {
			return nil, fmt.Errorf("registry configuration of %s: %w", host, err)
		}
		for i := range found {
			if n.sendsBearer(found[i].Host) {
				found[i].Authorizer = bearer(n.creds.bearer)
			}
		}
		return found, nil
	}})
}

// sendsBearer reports whether host gets the registry token: the host that the
// token names, else the one that the image names, but no mirror.
func (n *session) sendsBearer(host string) bool {
	if n.creds.bearer == "" {
		return false
	}
	if n.creds.server != "" {
		return n.creds.forHost(host)
	}
	return dockerHub(host) == reference.Domain(n.named)
}

// watch puts a transport into a client.
func (n *session) watch(client *http.Client) error {
	if _, ok := client.Transport.(*transport); ok {
		return nil // a copy of a client that has it
	}
	t := &transport{inner: client.Transport, session: n}
	client.Transport = t
	n.mu.Lock()
	defer n.mu.Unlock()
	n.transports = append(n.transports, t)
	return nil
}

// close drops the idle connections.
func (n *session) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, t := range n.transports {
		t.CloseIdleConnections()
	}
}

func hostDir(dirs []string) func(string) (string, error) {
	return func(host string) (string, error) {
		for _, dir := range dirs {
			found, err := config.HostDirFromRoot(dir)(host)
			if err == nil || !errdefs.IsNotFound(err) {
				return found, err
			}
		}
		return "", errdefs.ErrNotFound
	}
}

// bearer authorises with a token that the caller brought.
type bearer string

// Authorize implements docker.Authorizer.
func (b bearer) Authorize(_ context.Context, req *http.Request) error {
	req.Header.Set("Authorization", "Bearer "+string(b))
	return nil
}

// AddResponses is called when the registry refused the token.
func (bearer) AddResponses(context.Context, []*http.Response) error {
	return fmt.Errorf("the registry refused the registry token: %w", docker.ErrInvalidAuthorization)
}

// A transport counts bytes for the tracker and tells the watchdog when it
// waits for the network.
type transport struct {
	inner   http.RoundTripper
	session *session
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	host, what := req.URL.Host, path.Base(req.URL.Path)
	if strings.Contains(req.URL.Path, "/manifests/") {
		what = "manifest " + what
	}
	layer, _ := req.Context().Value(layerKey{}).(digest.Digest)
	if layer != "" {
		what = layer.String()
	}
	end := t.session.dog.begin(host, what)
	resp, err := t.inner.RoundTrip(req)
	end()
	if err != nil {
		return nil, err
	}
	if req.Method == http.MethodGet && resp.StatusCode < 300 {
		resp.Body = &body{ReadCloser: resp.Body, session: t.session, host: host, what: what, layer: layer}
	}
	return resp, nil
}

// CloseIdleConnections closes the connections that carry no request.
func (t *transport) CloseIdleConnections() {
	if c, ok := t.inner.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

type body struct {
	io.ReadCloser
	session    *session
	host, what string
	layer      digest.Digest
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	end := b.session.dog.begin(b.host, b.what)
	n, err := b.ReadCloser.Read(p)
	end()
	if n > 0 && b.layer != "" {
		b.session.tracker.read(b.layer, n)
	}
	return n, err // as it is: containerd compares it to know whether to resume
}
