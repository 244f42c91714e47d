package cri

import (
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/spec"
)

// What a request may hold at most, below the limit of the gRPC message.
const (
	maxID          = 1024
	maxName        = 253     // of a Kubernetes object
	maxReference   = 4096    // of an image
	maxPath        = 4095    // PATH_MAX without its NUL
	maxMetadata    = 1 << 20 // of all labels, of all annotations; Kubernetes allows a pod 256 KiB
	maxMetadataKey = 1024
)

// invalid is ErrInvalidArgument with the path of the field. The text says the
// value, what is wrong with it and what would be right.
func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// shown is a value as an error shows it.
func shown(value string) string { return spec.Shown(value) }

// validateID wants an ID that can be looked up. Whether an object has it is
// for the lookup to say.
func validateID(field, id string) error {
	if id == "" {
		return invalid(field, "it is required")
	}
	if len(id) > maxID {
		return invalid(field, "%s: an ID has no more than %d bytes", shown(id), maxID)
	}
	return nil
}

// validateName wants a name that can stand in a log line, in a CNI argument
// and in "namespace/name".
func validateName(field, name string) error {
	if name == "" {
		return invalid(field, "it is required")
	}
	if len(name) > maxName {
		return invalid(field, "%s: it is longer than %d bytes", shown(name), maxName)
	}
	for _, r := range name {
		if !unicode.IsGraphic(r) || unicode.IsSpace(r) || r == utf8.RuneError || strings.ContainsRune(`/\;=,"'`, r) {
			return invalid(field, "%s: the character %q is not allowed: use letters, digits, '-', '.' and '_'", shown(name), r)
		}
	}
	return nil
}

// validateAbsolute wants an absolute path.
func validateAbsolute(field, p string) error {
	if !path.IsAbs(p) || strings.ContainsRune(p, 0) {
		return invalid(field, "%s: it must be an absolute path", shown(p))
	}
	if len(p) > maxPath {
		return invalid(field, "%s: a path is no longer than %d bytes", shown(p), maxPath)
	}
	return nil
}

// validateMetadata looks at labels or annotations. They are kept as they are,
// so only their size counts.
func validateMetadata(field string, m map[string]string) error {
	total := 0
	for key, value := range m {
		if key == "" {
			return invalid(field, "there is an empty key, with value %s: name the key", shown(value))
		}
		if len(key) > maxMetadataKey {
			return invalid(field, "key %s: it is longer than %d bytes", shown(key), maxMetadataKey)
		}
		total += len(key) + len(value)
	}
	if total > maxMetadata {
		return invalid(field, "they have %d bytes altogether, more than %d: remove the largest", total, maxMetadata)
	}
	return nil
}

// validateImage wants a reference or an ID; which ones exist is for the store
// to say.
func validateImage(field string, image *runtime.ImageSpec) error {
	name := image.GetImage()
	if name == "" {
		return invalid(field+".image", "it is required: give a reference or an image ID")
	}
	if len(name) > maxReference {
		return invalid(field+".image", "%s: a reference is no longer than %d bytes", shown(name), maxReference)
	}
	if strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return invalid(field+".image", "%s: a reference has no spaces", shown(name))
	}
	return validateMetadata(field+".annotations", image.GetAnnotations())
}
