package image

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// idPrefix is what may stand for an image ID: hexadecimal, with or without the
// algorithm.
var idPrefix = regexp.MustCompile(`^(?:sha256:)?([0-9a-f]{1,64})$`)

// parseReference normalises a reference as users write it: "busybox" is
// docker.io/library/busybox:latest, and of a tag and a digest the digest counts.
func parseReference(ref string) (reference.Named, error) {
	if ref == "" {
		return nil, fmt.Errorf("image.image is empty: give a reference such as registry/name:tag: %w", errdefs.ErrInvalidArgument)
	}
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("image.image %q is no reference (%w): want [host/]name[:tag][@digest]: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	if canonical, ok := named.(reference.Canonical); ok {
		if err := canonical.Digest().Validate(); err != nil {
			return nil, fmt.Errorf("image.image %q has a bad digest (%w): %w", ref, err, errdefs.ErrInvalidArgument)
		}
	}
	return named, nil
}

// recordNames are the names under which an image pulled as named is recorded.
func recordNames(named reference.Named, target digest.Digest, id string) []string {
	var names []string
	if _, ok := named.(reference.NamedTagged); ok {
		names = append(names, named.String())
	}
	if _, ok := named.(reference.Canonical); ok {
		names = append(names, named.String())
	} else {
		names = append(names, named.Name()+"@"+target.String())
	}
	return append(names, id)
}

// tagsAndDigests sorts record names into what the CRI calls repo tags and
// repo digests; IDs are neither.
func tagsAndDigests(names []string) (tags, digests []string) {
	for _, name := range names {
		if idPrefix.MatchString(name) {
			continue
		}
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			continue // a name of some other tool, not a reference
		}
		switch named.(type) {
		case reference.Canonical:
			digests = append(digests, named.String())
		case reference.Tagged:
			tags = append(tags, named.String())
		}
	}
	slices.Sort(tags)
	slices.Sort(digests)
	return tags, digests
}

// A pinPattern is one entry of the configuration's pinned images.
type pinPattern struct {
	text   string
	prefix bool
}

func parsePins(patterns []string) ([]pinPattern, error) {
	var pins []pinPattern
	for _, p := range patterns {
		if text, ok := strings.CutSuffix(p, "*"); ok {
			pins = append(pins, pinPattern{text, true})
			continue
		}
		named, err := parseReference(p)
		if err != nil {
			return nil, fmt.Errorf("registry.pinned: %w", err)
		}
		pins = append(pins, pinPattern{named.String(), false})
	}
	return pins, nil
}

// match compares the full name, and for a prefix the short one too, so that
// both docker.io/library/busy* and busy* pin busybox.
func (p pinPattern) match(name string) bool {
	if !p.prefix {
		return name == p.text
	}
	if strings.HasPrefix(name, p.text) {
		return true
	}
	named, err := reference.ParseNormalizedNamed(name)
	return err == nil && strings.HasPrefix(reference.FamiliarString(named), p.text)
}

func (s *Store) pinned(name string) bool {
	return slices.ContainsFunc(s.pins, func(p pinPattern) bool { return p.match(name) })
}
