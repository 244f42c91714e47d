package spec

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestEveryFieldIsDecided: docs/notes/cri-fields.md has one row for each field
// that the two configurations can hold, and no other.
func TestEveryFieldIsDecided(t *testing.T) {
	doc, err := os.ReadFile("../../docs/notes/cri-fields.md")
	must(t, err)
	rows := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^\| (\w+\.\w+) \| (honoured|refused|kept|ignored) \| `).FindAllStringSubmatch(string(doc), -1) {
		rows[m[1]]++
	}
	fields, seen := map[string]bool{}, map[protoreflect.FullName]bool{}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		name := string(m.Name())
		if seen[m.FullName()] || m.IsMapEntry() || strings.HasPrefix(name, "Windows") {
			return
		}
		seen[m.FullName()] = true
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			fields[name+"."+string(f.Name())] = true
			if f.Message() != nil {
				walk(f.Message())
			}
		}
	}
	walk((&runtime.ContainerConfig{}).ProtoReflect().Descriptor())
	walk((&runtime.PodSandboxConfig{}).ProtoReflect().Descriptor())
	if len(fields) < 100 {
		t.Fatalf("only %d fields were found", len(fields))
	}
	for f := range fields {
		if rows[f] != 1 {
			t.Errorf("%s has %d rows", f, rows[f])
		}
	}
	for f := range rows {
		if !fields[f] {
			t.Errorf("%s is no field of the API", f)
		}
	}
}
