package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// maxCDIDevices bounds the CDI devices of a container.
const maxCDIDevices = 1024

// CDIDevices are the names of the CDI devices that a container asks for, by its
// CDI_devices and then by its annotations, each once.
func CDIDevices(c *runtime.ContainerConfig) ([]string, error) {
	var names []string
	add := func(field, name string) error {
		if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
			return fmt.Errorf("%s: %s: it is no CDI device (%w): give VENDOR/CLASS=NAME, as example.com/gpu=0: %w", field, Shown(name), err, errdefs.ErrInvalidArgument)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		if len(names) > maxCDIDevices {
			return fmt.Errorf("%s: %s: it is one more than the %d CDI devices that a container can have: %w", field, Shown(name), maxCDIDevices, errdefs.ErrInvalidArgument)
		}
		return nil
	}
	for i, d := range c.GetCDIDevices() {
		if err := add(fmt.Sprintf("CDI_devices[%d].name", i), d.GetName()); err != nil {
			return nil, err
		}
	}
	annotations := c.GetAnnotations()
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if !strings.HasPrefix(key, cdi.AnnotationPrefix) {
			continue
		}
		for name := range strings.SplitSeq(annotations[key], ",") {
			if err := add(fmt.Sprintf("annotations[%q]", key), name); err != nil {
				return nil, err
			}
		}
	}
	return names, nil
}

// InjectCDI adds to s the CDI devices that the container asks for, as the CDI
// specs in the directories describe them; those in a later directory go before
// those in an earlier one. It reads the directories each time that a container
// has such devices, and asks the machine for what a spec leaves out.
//
// Errors: ErrFailedPrecondition where no spec describes a device, or the device
// that it describes is not there.
func InjectCDI(s *specs.Spec, c *runtime.ContainerConfig, dirs []string) error {
	names, err := CDIDevices(c)
	if err != nil || len(names) == 0 {
		return err
	}
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(dirs...))
	if err != nil {
		return fmt.Errorf("CDI specs in %s: %w", strings.Join(dirs, ", "), err)
	}
	missing, err := cache.InjectDevices(s, names...)
	switch {
	case len(missing) > 0:
		return fmt.Errorf("CDI devices %s: no CDI spec in %s describes them%s: install the device's CDI spec, or mend it: %w",
			strings.Join(missing, ", "), strings.Join(dirs, ", "), mistakes(cache), errdefs.ErrFailedPrecondition)
	case err != nil:
		return fmt.Errorf("CDI devices %s: %w: %w", strings.Join(names, ", "), err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// mistakes tells which specs cannot be used.
func mistakes(cache *cdi.Cache) string {
	failed := cache.GetErrors()
	if len(failed) == 0 {
		return ""
	}
	var parts []string
	for _, path := range slices.Sorted(maps.Keys(failed)) {
		parts = append(parts, fmt.Sprintf("%s: %v", path, failed[path][0]))
	}
	return " (" + strings.Join(parts, "; ") + ")"
}
