package kubelet

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

// explained are errors in the kubelet's log that may be there, each with its
// reason. Every other one fails the run.
var explained = []struct{ pattern, reason string }{
	{`Failed to set rlimit on max file handles`, "this machine gives no right to raise a limit"},
	{`Skipping pod synchronization.* may not have completed yet`, "said at each start, before the first look at the runtime"},
	{`Failed to read data from checkpoint.*kubelet_internal_checkpoint`, "the device manager's, which a new node does not have"},
	{`Failed to find cgroups of kubelet`, "the machine's cgroups of the kubelet differ between hierarchies"},
	{`failed to check if we have separate container filesystem.*no imagefs label`, "said at each start, before cAdvisor knows the file systems"},
	{`Failed to get system container stats.*unknown container|failed to construct signal.*system container "pods" not found in metrics`, "said when it is asked before cAdvisor has looked at the pods' cgroup"},
	{`failed to check if node is newer; using informer node`, "a standalone kubelet's node has no version"},
	{`code = Canceled desc = context canceled`, "the kubelet gave the call up itself, as it does when a pod is deleted"},
	{`Error proxying data from (client to backend|backend to client).*(broken pipe|connection reset by peer)`, "a client sends the end of its streams after the command has ended"},
	{`"Error on socket receive".*use of closed network connection`, "the same, with WebSockets"},
	{`ExecSync.*(is exited, not running|the container has just ended)`, "a probe meets the end of its container"},
	{`Failed to remove container log dead symlink.*no such file`, "the kubelets of the two nodes share /var/log/containers, and the other one removed it"},
	{`"Could not get metadata".*/manifests/|"Unable to process watch event"`, "a manifest went while the kubelet looked at it"},
	{`Partial failure issuing cadvisor.ContainerInfoV2.*unable to find data in memory cache`, "cAdvisor has not looked at a new cgroup yet"},
	{`(resize is not currently feasible|ResizePodInPlaceError).*unable to read memory usage for pod`, "the same"},
	{`CheckpointContainer: berth makes no checkpoints`, "TestCheckpoint asks for one, which berth does not make"},
	{`PodSandbox from runtime service failed.*podSandboxID=""`, "the kubelet asks with no ID whether the runtime has such statistics"},
	{`CrashLoopBackOff: .*back-off (2|10)s restarting`, "pods of the tests end on purpose"},
	{`PostStartHook.*exit(ed with)? 9`, "TestFailedHookRestarts has a hook that fails"},
	{`/none:1|InvalidImageName|ErrImageNeverPull`, "TestPullPolicies asks for images that are none"},
	{`(Could not determine if subPath exists|Failed to prepare subPath)`, "TestBrokenContainers asks for a path below a file"},
	{`container has runAsNonRoot and image will run as root`, "TestRootIsRefused"},
}

// removed finds the container of a call that met its removal; removing, the
// kubelet's own word that it removes one, or asks for it only because there is
// a link to its log, maybe one of another node's, which it collects as garbage.
var (
	removed  = regexp.MustCompile(`code = NotFound desc = container [0-9a-f]{64}: not found".* containerID="([0-9a-f]{64})"`)
	removing = regexp.MustCompile(`"(?:RemoveContainer|Error getting ContainerStatus for containerID)" containerID="([0-9a-f]{64})"`)
)

// complaints are the errors in the kubelet's log that nothing explains.
func (n *node) complaints() error {
	text, err := os.ReadFile(n.logFile)
	if err != nil {
		return err
	}
	var patterns []*regexp.Regexp
	for _, e := range explained {
		patterns = append(patterns, regexp.MustCompile(e.pattern))
	}
	for _, pattern := range n.allow {
		patterns = append(patterns, regexp.MustCompile(pattern))
	}
	itself := map[string]bool{} // what the kubelet removed, or wanted to be gone
	for _, m := range removing.FindAllStringSubmatch(string(text), -1) {
		itself[m[1]] = true
	}
	entries := logEntries(string(text))
	meant := n.meantIDs(entries)
	var errs []error
	for _, entry := range entries {
		if entry[0] != 'E' && entry[0] != 'F' || matches(patterns, entry) || names(entry, meant) {
			continue
		}
		if m := removed.FindStringSubmatch(entry); m != nil && itself[m[1]] {
			continue
		}
		errs = append(errs, fmt.Errorf("log of the kubelet: %.1500s", entry))
	}
	return errors.Join(errs...)
}

// meantIDs are the names of the pods that are meant to go wrong, and the IDs of
// their sandboxes and containers, which entries that name a pod hold too.
func (n *node) meantIDs(entries []string) map[string]bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	ids := maps.Clone(n.troubled)
	for _, entry := range entries {
		if names(entry, n.troubled) {
			for _, id := range identifier.FindAllString(entry, -1) {
				ids[id] = true
			}
		}
	}
	return ids
}

// identifier finds what may be the name of a pod, or an ID.
var identifier = regexp.MustCompile(`[a-z0-9-]*-` + nodeName + `|[0-9a-f]{64}`)

// names tells whether the entry holds one of the names or IDs.
func names(entry string, of map[string]bool) bool {
	return slices.ContainsFunc(identifier.FindAllString(entry, -1), func(id string) bool { return of[id] })
}

// header begins an entry of klog; what follows without one belongs to it.
var header = regexp.MustCompile(`(?m)^[IWEF]\d{4} `)

func logEntries(text string) []string {
	var entries []string
	starts := header.FindAllStringIndex(text, -1)
	for i, s := range starts {
		end := len(text)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		entries = append(entries, strings.Join(strings.Fields(text[s[0]:end]), " "))
	}
	return entries
}

func matches(patterns []*regexp.Regexp, entry string) bool {
	for _, p := range patterns {
		if p.MatchString(entry) {
			return true
		}
	}
	return false
}
