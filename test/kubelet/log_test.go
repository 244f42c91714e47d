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
var explained = []struct{ pattern, reason string }{
	{`Failed to set rlimit on max file handles`, "this machine gives no right to raise a limit"},
	{`Skipping pod synchronization.* may not have completed yet`, "said at each start, before the first look at the runtime"},
	{`Failed to read data from checkpoint.*kubelet_internal_checkpoint`, "the device manager's, which a new node does not have"},
	{`Failed to find cgroups of kubelet`, "the machine's cgroups of the kubelet differ between hierarchies"},
	{`failed to check if we have separate container filesystem.*no imagefs label`, "said at each start, before cAdvisor knows the file systems"},
	{`failed to check if node is newer; using informer node`, "a standalone kubelet's node has no version"},
}

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
