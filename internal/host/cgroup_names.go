package host

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// defaultSlice holds containers for which no parent is given.
const defaultSlice = "system.slice"

// OCIPath returns what stands in linux.cgroupsPath of the container's spec:
// "/parent/id", or "parent.slice:cri-containerd:id" with the systemd driver.
func (c *Cgroups) OCIPath(parent, id string) string {
	if c.driver != SystemdDriver {
		return filepath.Join("/", parent, id)
	}
	return sliceOf(parent) + ":" + scopePrefix + ":" + id
}

// Path returns the cgroup which OCIPath means.
func (c *Cgroups) Path(parent, id string) string {
	if c.driver != SystemdDriver {
		return filepath.Join("/", parent, id)
	}
	slice, err := expandSlice(sliceOf(parent))
	if err != nil { // Ensure has refused it
		slice = filepath.Join("/", parent)
	}
	return filepath.Join(slice, scopePrefix+"-"+id+".scope")
}

func sliceOf(parent string) string {
	if strings.Trim(parent, "/") == "" {
		return defaultSlice
	}
	return filepath.Base(parent)
}

// expand returns the path of a cgroup that is given by its path or, with the
// systemd driver, by its slice.
func (c *Cgroups) expand(parent string) (string, error) {
	path := filepath.Join("/", parent)
	if c.driver != SystemdDriver || path == "/" || strings.HasSuffix(path, ".scope") {
		return path, nil
	}
	base := filepath.Base(path)
	if !strings.HasSuffix(base, ".slice") {
		return "", fmt.Errorf("cgroup parent %q: not a slice, as the systemd driver needs it; the kubelet's cgroupDriver and berth's cgroup.driver must be the same: %w", parent, errdefs.ErrInvalidArgument)
	}
	return expandSlice(base)
}

// expandSlice returns the path of a slice, whose name says where it is:
// "a-b.slice" is "/a.slice/a-b.slice".
func expandSlice(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, ".slice")
	if slice == "-.slice" {
		return "/", nil
	}
	if !ok || name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("slice %q: not a slice's name: %w", slice, errdefs.ErrInvalidArgument)
	}
	path, prefix := "/", ""
	for _, part := range strings.Split(name, "-") {
		if part == "" {
			return "", fmt.Errorf("slice %q: an empty part between dashes: %w", slice, errdefs.ErrInvalidArgument)
		}
		prefix += part
		path = filepath.Join(path, prefix+".slice")
		prefix += "-"
	}
	return path, nil
}

// isUnit tells whether the cgroup is one that systemd made.
func isUnit(path string) bool {
	return strings.HasSuffix(path, ".slice") || strings.HasSuffix(path, ".scope")
}
