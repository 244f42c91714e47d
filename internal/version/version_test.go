package version

import (
	"regexp"
	"strings"
	"testing"
)

// A kubelet parses the version of its runtime.
func TestVersionIsSemantic(t *testing.T) {
	semantic := regexp.MustCompile(`^v?\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)
	if !semantic.MatchString(Version()) {
		t.Errorf("version %q is not a semantic version", Version())
	}
	if !strings.HasPrefix(String(), "berth "+Version()+" (go") {
		t.Errorf("String() = %q", String())
	}
}
