package kubelet

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
)

// explained are error lines of the kubelet's log that may be there, each with
// its reason. Everything else fails the run.
var explained = []struct{ pattern, reason string }{}

// complaints are the lines of errors in the kubelet's log that nothing
// explains.
func (n *node) complaints() error {
	text, err := os.ReadFile(n.logFile)
	if err != nil {
		return err
	}
	var patterns []*regexp.Regexp
	for _, e := range explained {
		patterns = append(patterns, regexp.MustCompile(e.pattern))
	}
	var errs []error
	for line := range strings.Lines(string(text)) {
		if len(line) < 5 || line[0] != 'E' && line[0] != 'F' || !isDigits(line[1:5]) {
			continue
		}
		if !matches(patterns, line) {
			errs = append(errs, fmt.Errorf("log of the kubelet: %.1500s", strings.TrimSpace(line)))
		}
	}
	return errors.Join(errs...)
}

func isDigits(s string) bool { return strings.Trim(s, "0123456789") == "" }

func matches(patterns []*regexp.Regexp, line string) bool {
	for _, p := range patterns {
		if p.MatchString(line) {
			return true
		}
	}
	return false
}
