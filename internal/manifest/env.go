package manifest

import (
	"slices"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fieldPaths are the fields of a pod that a variable may take its value from.
var fieldPaths = []string{
	"metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels['<KEY>']", "metadata.annotations['<KEY>']",
	"spec.nodeName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
}

func knownField(fieldPath string) bool {
	if kind, _, ok := subscript(fieldPath); ok {
		return kind == "metadata.labels" || kind == "metadata.annotations"
	}
	return slices.Contains(fieldPaths, fieldPath)
}

// subscript takes metadata.labels['key'] apart.
func subscript(fieldPath string) (kind, key string, ok bool) {
	kind, rest, ok := strings.Cut(fieldPath, "['")
	if !ok {
		return "", "", false
	}
	key, ok = strings.CutSuffix(rest, "']")
	return kind, key, ok && key != ""
}

// fieldValue is the value of a field that knownField accepts.
func (p *Plan) fieldValue(fieldPath string, started Started) string {
	if kind, key, ok := subscript(fieldPath); ok {
		if kind == "metadata.labels" {
			return p.Pod.Labels[key]
		}
		return p.Pod.Annotations[key]
	}
	switch fieldPath {
	case "metadata.name":
		return p.Pod.Name
	case "metadata.namespace":
		return p.Pod.Namespace
	case "metadata.uid":
		return p.opts.UID
	case "spec.nodeName":
		return p.opts.Hostname
	case "status.hostIP":
		return first(p.opts.HostIPs)
	case "status.hostIPs":
		return strings.Join(p.opts.HostIPs, ",")
	case "status.podIP":
		return first(started.IPs)
	case "status.podIPs":
		return strings.Join(started.IPs, ",")
	}
	return ""
}

func first(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return all[0]
}

// env is the container's environment, and the same as a map. A value may refer
// to variables before it; a name that comes twice has its last value.
func (p *Plan) env(c *Container, started Started) ([]*runtime.KeyValue, map[string]string) {
	var env []*runtime.KeyValue
	vars := map[string]string{}
	for _, v := range c.spec.Env {
		value := expand(v.Value, vars)
		if v.ValueFrom != nil {
			value = p.fieldValue(v.ValueFrom.FieldRef.FieldPath, started)
		}
		if _, again := vars[v.Name]; again {
			env = slices.DeleteFunc(env, func(kv *runtime.KeyValue) bool { return kv.Key == v.Name })
		}
		vars[v.Name] = value
		env = append(env, &runtime.KeyValue{Key: v.Name, Value: []byte(value)})
	}
	return env, vars
}

func expandAll(all []string, vars map[string]string) []string {
	var expanded []string
	for _, s := range all {
		expanded = append(expanded, expand(s, vars))
	}
	return expanded
}

// expand replaces $(NAME) by the variable's value. $$ is a dollar sign; what
// names no variable stays as it is.
func expand(s string, vars map[string]string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, "$")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		s = after
		if strings.HasPrefix(s, "$") {
			b.WriteByte('$')
			s = s[1:]
			continue
		}
		name, rest, closed := strings.Cut(strings.TrimPrefix(s, "("), ")")
		value, known := vars[name]
		if !strings.HasPrefix(s, "(") || !closed || !known {
			b.WriteByte('$')
			continue
		}
		b.WriteString(value)
		s = rest
	}
}
