package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// supportedFields are the paths of all that is acted upon; a path stands for
// everything below it too. [] is an element of a list.
var supportedFields = pathSet(
	"apiVersion", "kind",
	"metadata.name", "metadata.namespace", "metadata.labels", "metadata.annotations",
	"spec.volumes[].name",
	"spec.volumes[].emptyDir.medium", "spec.volumes[].emptyDir.sizeLimit",
	"spec.volumes[].hostPath.path", "spec.volumes[].hostPath.type",
	"spec.restartPolicy", "spec.terminationGracePeriodSeconds",
	"spec.dnsPolicy", "spec.dnsConfig",
	"spec.hostNetwork", "spec.hostPID", "spec.hostIPC", "spec.shareProcessNamespace",
	"spec.hostname", "spec.hostAliases", "spec.runtimeClassName",
	"spec.os.name",
	"spec.securityContext.runAsUser", "spec.securityContext.runAsGroup", "spec.securityContext.runAsNonRoot",
	"spec.securityContext.supplementalGroups", "spec.securityContext.supplementalGroupsPolicy",
	"spec.securityContext.fsGroup", "spec.securityContext.fsGroupChangePolicy",
	"spec.securityContext.sysctls", "spec.securityContext.seccompProfile",
	"spec.securityContext.appArmorProfile", "spec.securityContext.seLinuxOptions",
	containers("name"), containers("image"), containers("imagePullPolicy"),
	containers("command"), containers("args"), containers("workingDir"),
	containers("env[].name"), containers("env[].value"), containers("env[].valueFrom.fieldRef"),
	containers("ports"), containers("stdin"), containers("stdinOnce"), containers("tty"),
	containers("resources.limits.cpu"), containers("resources.limits.memory"),
	containers("resources.requests.cpu"), containers("resources.requests.memory"),
	containers("volumeMounts[].name"), containers("volumeMounts[].mountPath"),
	containers("volumeMounts[].readOnly"), containers("volumeMounts[].mountPropagation"),
	containers("lifecycle.stopSignal"),
	containers("securityContext.capabilities"), containers("securityContext.privileged"),
	containers("securityContext.runAsUser"), containers("securityContext.runAsGroup"), containers("securityContext.runAsNonRoot"),
	containers("securityContext.readOnlyRootFilesystem"), containers("securityContext.allowPrivilegeEscalation"),
	containers("securityContext.procMount"), containers("securityContext.seccompProfile"),
	containers("securityContext.appArmorProfile"), containers("securityContext.seLinuxOptions"),
	"spec.initContainers[].restartPolicy",
)

// harmless are values of other fields that ask for what is so anyway.
var harmless = map[string]string{
	"spec.hostUsers":                    "true",
	"spec.automountServiceAccountToken": "false",
	"spec.enableServiceLinks":           "false",
	"spec.setHostnameAsFQDN":            "false",
	"status":                            "{}", // what kubectl --dry-run prints
}

// hints say what to do about fields that manifests often have.
var hints = []struct{ path, hint string }{
	{containers("livenessProbe"), "probes need a kubelet; remove it"},
	{containers("readinessProbe"), "probes need a kubelet; remove it"},
	{containers("startupProbe"), "probes need a kubelet; remove it"},
	{containers("envFrom"), "there is no API server to read it from; list the variables in env"},
	{containers("env[].valueFrom"), "of valueFrom, fieldRef alone is supported; give the value"},
	{containers("volumeMounts[].subPath"), "mount the whole volume, or a hostPath volume of that directory"},
	{"spec.volumes[]", "of volumes, emptyDir and hostPath are supported"},
	{"spec.hostUsers", "it takes a kubelet, which allots the users; remove it"},
	{"spec.nodeSelector", "there is no scheduler; remove it"},
	{"spec.affinity", "there is no scheduler; remove it"},
	{"spec.tolerations", "there is no scheduler; remove it"},
	{"spec.nodeName", "there is no scheduler; remove it"},
	{"spec.schedulerName", "there is no scheduler; remove it"},
	{"spec.serviceAccountName", "there is no API server; remove it"},
	{"spec.serviceAccount", "there is no API server; remove it"},
	{"spec.automountServiceAccountToken", "there is no API server; set it to false"},
	{"spec.imagePullSecrets", "pull the image with `berth pull --creds` first; remove it"},
	{"status", "a status is no part of what to run; remove it"},
	{"metadata", "of metadata, name, namespace, labels and annotations are supported; remove it"},
}

// containers stands for a field of containers of both kinds.
func containers(field string) string { return "spec.{initContainers,containers}[]." + field }

// pathSet expands the braces that containers makes.
func pathSet(paths ...string) map[string]bool {
	set := map[string]bool{}
	for _, p := range paths {
		for _, p := range expandPath(p) {
			set[p] = true
		}
	}
	return set
}

func expandPath(path string) []string {
	before, rest, ok := strings.Cut(path, "{")
	if !ok {
		return []string{path}
	}
	choices, after, _ := strings.Cut(rest, "}")
	var all []string
	for choice := range strings.SplitSeq(choices, ",") {
		all = append(all, before+choice+after)
	}
	return all
}

// checkSupported walks all that the manifest sets and reports what is not acted
// upon.
func checkSupported(raw []byte) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var doc any
	if err := dec.Decode(&doc); err != nil {
		return err
	}
	w := &walker{parents: map[string]bool{}}
	for path := range supportedFields {
		for i, c := range path {
			if c == '.' || c == '[' {
				w.parents[path[:i]] = true
			}
		}
	}
	w.walk("", doc)
	return errors.Join(w.errs...)
}

// A walker collects what is not supported.
type walker struct {
	parents map[string]bool // supported in part: a list or an object to go into
	errs    []error
}

var indexes = regexp.MustCompile(`\[[0-9]+\]`)

// walk looks at the value at path.
func (w *walker) walk(path string, value any) {
	pattern := indexes.ReplaceAllString(path, "[]")
	if supportedFields[pattern] || unset(value) || harmlessValue(pattern, value) {
		return
	}
	inner := path == "" || w.parents[pattern]
	switch v := value.(type) {
	case map[string]any:
		if inner {
			for _, key := range slices.Sorted(maps.Keys(v)) {
				w.walk(strings.TrimPrefix(path+"."+key, "."), v[key])
			}
			return
		}
	case []any:
		if inner {
			for i, item := range v {
				w.walk(fmt.Sprintf("%s[%d]", path, i), item)
			}
			return
		}
	}
	w.errs = append(w.errs, fmt.Errorf("%s: not supported by berth run: %s", path, hint(pattern)))
}

// unset tells whether a value says as much as its absence.
func unset(value any) bool {
	switch v := value.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	}
	return false
}

func harmlessValue(pattern string, value any) bool {
	want, ok := harmless[pattern]
	if !ok {
		return false
	}
	got, err := json.Marshal(value)
	return err == nil && string(got) == want
}

func hint(pattern string) string {
	for _, h := range hints {
		for _, p := range expandPath(h.path) {
			if pattern == p || strings.HasPrefix(pattern, p+".") {
				return h.hint
			}
		}
	}
	return "remove it"
}
