// Package manifest turns a Kubernetes Pod manifest into what a CRI server is
// asked for, as a kubelet would.
//
// Nothing in a manifest is ignored: a field that is unknown, or known to
// Kubernetes and not done here, is an error that names it by its path. The
// package is pure: files, images and addresses that a decision needs are given
// as values. Its values are not changed after they are made and may be shared.
package manifest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"

	"github.com/containerd/errdefs"
	corev1 "k8s.io/api/core/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	strictjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// MaxSize is the largest manifest that is read; etcd takes no larger object.
const MaxSize = 3 << 20

// Read decodes the one Pod that r holds as YAML or JSON.
func Read(r io.Reader) (*corev1.Pod, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return Decode(data)
}

// Decode decodes the one Pod in data, sets the defaults that Kubernetes would,
// and validates it. All that is wrong is reported at once, ErrInvalidArgument.
func Decode(data []byte) (*corev1.Pod, error) {
	if len(data) > MaxSize {
		return nil, invalidf("the manifest is larger than %d bytes", MaxSize)
	}
	doc, err := oneDocument(data)
	if err != nil {
		return nil, err
	}
	raw, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return nil, invalidf("the manifest is no YAML: %w", err)
	}
	if err := checkKind(raw); err != nil {
		return nil, err
	}
	var pod corev1.Pod
	strict, err := strictjson.UnmarshalStrict(raw, &pod)
	if err != nil {
		return nil, wrongType(err)
	}
	if err := errors.Join(strict...); err != nil {
		return nil, invalidf("%w", err)
	}
	if err := checkSupported(raw); err != nil {
		return nil, invalidf("%w", err)
	}
	setDefaults(&pod)
	if err := validate(&pod).ToAggregate(); err != nil {
		return nil, invalidf("%w", err)
	}
	return &pod, nil
}

// wrongType says in YAML's terms what encoding/json says in Go's.
func wrongType(err error) error {
	var mistake *json.UnmarshalTypeError
	if !errors.As(err, &mistake) {
		return invalidf("the manifest is no Pod: %w", err)
	}
	want, hint := mistake.Type.Kind().String(), ""
	switch mistake.Type.Kind() {
	case reflect.Slice:
		want = "list"
	case reflect.Map, reflect.Struct:
		want = "mapping"
	case reflect.String:
		hint = "; in YAML, quote it"
	}
	return invalidf("%s: want a %s, found a %s%s", mistake.Field, want, mistake.Value, hint)
}

// An invalidError is a manifest that cannot be used. Its text is for the
// manifest's author; the kind is for errdefs.
type invalidError struct{ error }

// Is makes it ErrInvalidArgument.
func (invalidError) Is(target error) bool { return target == errdefs.ErrInvalidArgument }

// Unwrap gives the parts.
func (e invalidError) Unwrap() error { return e.error }

func invalidf(format string, args ...any) error { return invalidError{fmt.Errorf(format, args...)} }

// oneDocument is the only document of a YAML stream that is not empty.
func oneDocument(data []byte) ([]byte, error) {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	var found []byte
	for {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, invalidf("the manifest is no YAML: %w", err)
		}
		if empty(doc) {
			continue
		}
		if found != nil {
			return nil, invalidf("the manifest holds several documents: berth run takes one Pod; put each in a file of its own")
		}
		found = doc
	}
	if found == nil {
		return nil, invalidf("the manifest is empty: want a Pod")
	}
	return found, nil
}

// empty tells whether a document has nothing but comments.
func empty(doc []byte) bool {
	for line := range bytes.Lines(doc) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return false
		}
	}
	return true
}

func checkKind(raw []byte) error {
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return invalidf("the manifest is no Kubernetes object: %w", err)
	}
	if head.APIVersion != "v1" || head.Kind != "Pod" {
		return invalidf("apiVersion %q, kind %q: berth run takes apiVersion v1, kind Pod", head.APIVersion, head.Kind)
	}
	return nil
}
