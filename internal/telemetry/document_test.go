package telemetry

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// docs/operations.md has a row for each metric, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	names := func(file, pattern string) []string {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, m := range regexp.MustCompile(pattern).FindAllSubmatch(text, -1) {
			found = append(found, string(m[1]))
		}
		slices.Sort(found)
		return slices.Compact(found)
	}
	if diff := cmp.Diff(names("metrics.go", `"(berth_[a-z_]+)"`), names("../../docs/operations.md", "(?m)^\\| `(berth_[a-z_]+)`")); diff != "" {
		t.Errorf("-metrics.go +docs/operations.md:\n%s", diff)
	}
}
