package image

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// credentials are what a caller gives for its pull. They are held in memory
// only; String hides them from every log.
type credentials struct {
	user, secret string // a secret without user is an identity token
	bearer       string // a registry token, sent as it is
	server       string // the one host they are for, or ""
}

// String keeps credentials out of formatted text.
func (credentials) String() string { return "credentials" }

// GoString keeps them out of %#v.
func (c credentials) GoString() string { return c.String() }

func parseAuth(auth *runtime.AuthConfig) (credentials, error) {
	if auth == nil {
		return credentials{}, nil
	}
	server, err := serverHost(auth.GetServerAddress())
	if err != nil {
		return credentials{}, err
	}
	c := credentials{server: server}
	switch {
	case auth.GetUsername() != "":
		c.user, c.secret = auth.GetUsername(), auth.GetPassword()
	case auth.GetIdentityToken() != "":
		c.secret = auth.GetIdentityToken()
	case auth.GetAuth() != "":
		c.user, c.secret, err = decodeAuth(auth.GetAuth())
	case auth.GetRegistryToken() != "":
		c.bearer = auth.GetRegistryToken()
	}
	return c, err
}

// decodeAuth reads "user:password" in base64, as docker's config.json has it:
// padded or not, with NULs behind it from old versions of docker.
func decodeAuth(text string) (user, secret string, err error) {
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
	if err != nil {
		// The decoder's error quotes nothing of the secret but a position.
		return "", "", fmt.Errorf("auth.auth is not base64 of user:password (%w): %w", err, errdefs.ErrInvalidArgument)
	}
	user, secret, ok := strings.Cut(string(raw), ":")
	if !ok {
		return "", "", fmt.Errorf("auth.auth has no colon between user and password: %w", errdefs.ErrInvalidArgument)
	}
	return user, strings.Trim(secret, "\x00"), nil
}

// serverHost is the host of a server address, which is a URL or a bare host.
func serverHost(address string) (string, error) {
	if address == "" {
		return "", nil
	}
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("auth.server_address is neither a host nor a URL: %w", errdefs.ErrInvalidArgument)
	}
	return dockerHub(u.Host), nil
}

// dockerHub gives Docker Hub's several names one.
func dockerHub(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// forHost reports whether host may see the credentials.
func (c credentials) forHost(host string) bool {
	return c.server == "" || c.server == dockerHub(host)
}

// lookup is containerd's way to ask for credentials.
func (c credentials) lookup(host string) (user, secret string, err error) {
	if !c.forHost(host) {
		return "", "", nil
	}
	return c.user, c.secret, nil
}

// key tells different credentials apart without being them.
func (c credentials) key() string {
	h := sha256.New()
	for _, part := range []string{c.user, c.secret, c.bearer, c.server} {
		fmt.Fprintf(h, "%d:%s,", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
