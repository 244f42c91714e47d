package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// query matches what follows the path of a URL: a redirect to an object store
// carries a signature there that is as good as a password.
var query = regexp.MustCompile(`(https?://[^\s"?]+)\?[^\s"]*`)

// scrubbed is an error whose text shows no query of a URL.
type scrubbed struct {
	text string
	err  error
}

func (e *scrubbed) Error() string { return e.text }

// Unwrap keeps the kind.
func (e *scrubbed) Unwrap() error { return e.err }

func scrub(err error) error {
	text := err.Error()
	if clean := query.ReplaceAllString(text, "$1"); clean != text {
		return &scrubbed{clean, err}
	}
	return err
}

// pullError says what a failed download means for the one who asked for it.
func pullError(named reference.Named, c credentials, err error) error {
	err = scrub(err)
	host := reference.Domain(named)
	status, known := statusOf(err)
	switch {
	case errors.Is(err, docker.ErrInvalidAuthorization), status == http.StatusUnauthorized, status == http.StatusForbidden:
		var kind error = errdefs.ErrPermissionDenied
		if status != http.StatusForbidden && c == (credentials{}) {
			kind = errdefs.ErrUnauthenticated
		}
		return fmt.Errorf("pull of image %s: access denied by %s: check that the repository exists and that the pull secret is for it: %w: %w", named, host, err, kind)
	case errdefs.IsNotFound(err), status == http.StatusNotFound:
		return fmt.Errorf("image %s not found at %s: %w: %w", named, host, err, errdefs.ErrNotFound)
	case status == http.StatusTooManyRequests:
		return fmt.Errorf("pull of image %s: %s limits the rate of pulls; try later or with credentials: %w: %w", named, host, err, errdefs.ErrResourceExhausted)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded),
		errdefs.IsInvalidArgument(err), errdefs.IsFailedPrecondition(err):
		return fmt.Errorf("pull of image %s: %w", named, err)
	case known && status >= 500:
		return fmt.Errorf("pull of image %s: %s is failing; try again: %w: %w", named, host, err, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("pull of image %s from %s: %w", named, host, err)
}

func statusOf(err error) (int, bool) {
	var unexpected remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &unexpected) {
		return unexpected.StatusCode, true
	}
	var pointer *remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &pointer) {
		return pointer.StatusCode, true
	}
	return 0, false
}
