package spec

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Check finds what Container would refuse whatever the image and the machine
// are, so that a mistake is told before anything is made. The container's
// resources are not looked at.
func Check(sandbox *runtime.PodSandboxConfig, c *runtime.ContainerConfig) error {
	sc := c.GetLinux().GetSecurityContext()
	if err := refused(sandbox, c); err != nil {
		return err
	}
	if _, _, err := PIDMode(sandbox, c); err != nil {
		return err
	}
	for i, kv := range c.GetEnvs() {
		if err := CheckEnv(kv.GetKey(), kv.GetValue()); err != nil {
			return fmt.Errorf("envs[%d].%w", i, err)
		}
	}
	if err := checkWorkingDir(c.GetWorkingDir()); err != nil {
		return err
	}
	taken := map[string]bool{}
	for i, m := range c.GetMounts() {
		if err := CheckMount(m); err != nil {
			return fmt.Errorf("mounts[%d].%w", i, err)
		}
		destination := path.Clean(m.GetContainerPath())
		if taken[destination] {
			return twice(i, m)
		}
		taken[destination] = true
	}
	for i, d := range c.GetDevices() {
		if err := CheckDevice(d); err != nil {
			return fmt.Errorf("devices[%d].%w", i, err)
		}
	}
	return checkSecurity(sc)
}

func checkSecurity(sc *runtime.LinuxContainerSecurityContext) error {
	c := sc.GetCapabilities()
	for _, list := range []struct {
		field string
		names []string
	}{
		{"add_capabilities", c.GetAddCapabilities()},
		{"drop_capabilities", c.GetDropCapabilities()},
		{"add_ambient_capabilities", c.GetAddAmbientCapabilities()},
	} {
		if _, err := capabilityNames(list.field, list.names); err != nil {
			return err
		}
	}
	if _, _, err := Profiles(sc); err != nil {
		return err
	}
	if err := checkHiddenPaths(sc); err != nil {
		return err
	}
	return CheckUser(sc)
}

// refused turns down what is not done here at all.
func refused(sandbox *runtime.PodSandboxConfig, c *runtime.ContainerConfig) error {
	sc := c.GetLinux().GetSecurityContext()
	if sc.GetPrivileged() && !sandbox.GetLinux().GetSecurityContext().GetPrivileged() {
		return fmt.Errorf("linux.security_context.privileged: the sandbox was not made for privileged containers: set it in the sandbox's linux.security_context too: %w", errdefs.ErrInvalidArgument)
	}
	if _, err := CDIDevices(c); err != nil {
		return err
	}
	o := sc.GetNamespaceOptions()
	if err := checkSameUserNamespace(sandbox, o); err != nil {
		return err
	}
	// The sandbox's choice counts. Saying nothing is POD, so that is no
	// contradiction.
	pod := sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions()
	for _, ns := range []struct {
		field    string
		own, pod runtime.NamespaceMode
	}{{"network", o.GetNetwork(), pod.GetNetwork()}, {"ipc", o.GetIpc(), pod.GetIpc()}} {
		if ns.own != runtime.NamespaceMode_POD && ns.own != ns.pod {
			return fmt.Errorf("linux.security_context.namespace_options.%s: %s, but the sandbox was made with %s, which all its containers share: %w", ns.field, ns.own, ns.pod, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// Shown is a value as an error shows it: quoted, and not all of a long one.
func Shown(value string) string {
	const most = 128
	if len(value) <= most {
		return fmt.Sprintf("%q", value)
	}
	cut := most
	for cut > 0 && !utf8.RuneStart(value[cut]) {
		cut--
	}
	return fmt.Sprintf("%q… (%d bytes)", value[:cut], len(value))
}

// CheckEnv says what is wrong with a variable; the error starts with the name
// of the field in KeyValue.
func CheckEnv(key string, value []byte) error {
	switch {
	case key == "":
		return fmt.Errorf("key: it is empty: name the variable: %w", errdefs.ErrInvalidArgument)
	case strings.ContainsAny(key, "=\x00") || !utf8.ValidString(key):
		return fmt.Errorf("key: %s: a variable's name holds no '=' and no NUL: %w", Shown(key), errdefs.ErrInvalidArgument)
	case slices.Contains(value, 0):
		return fmt.Errorf("value: that of %s holds a NUL byte, which no variable can: %w", key, errdefs.ErrInvalidArgument)
	case !utf8.Valid(value):
		return fmt.Errorf("value: that of %s is not UTF-8, which is all that a runtime spec carries: encode it, or mount it as a file: %w", key, errdefs.ErrInvalidArgument)
	}
	return nil
}

func checkWorkingDir(dir string) error {
	if dir != "" && !isAbs(dir) {
		return fmt.Errorf("working_dir: %s: it must be an absolute path: %w", Shown(dir), errdefs.ErrInvalidArgument)
	}
	return nil
}

func isAbs(p string) bool { return path.IsAbs(p) && !strings.ContainsRune(p, 0) }

// CheckMount says what is wrong with a CRI mount; the error starts with the
// name of the field.
func CheckMount(m *runtime.Mount) error {
	switch {
	case !isAbs(m.GetContainerPath()) || path.Clean(m.GetContainerPath()) == "/":
		return fmt.Errorf("container_path: %s: it must be an absolute path below /: %w", Shown(m.GetContainerPath()), errdefs.ErrInvalidArgument)
	case m.GetImage() != nil && m.GetHostPath() != "":
		return fmt.Errorf("host_path: %s: it must be empty where image is set: %w", Shown(m.GetHostPath()), errdefs.ErrInvalidArgument)
	case m.GetImage() != nil && m.GetImage().GetImage() == "":
		return fmt.Errorf("image.image: it is empty: name the image: %w", errdefs.ErrInvalidArgument)
	case m.GetImage() != nil && !m.GetReadonly():
		return fmt.Errorf("readonly: it must be set where image is: an image is mounted read-only: %w", errdefs.ErrInvalidArgument)
	case m.GetImage() != nil && m.GetPropagation() != runtime.MountPropagation_PROPAGATION_PRIVATE:
		return fmt.Errorf("propagation: %s: it must be PROPAGATION_PRIVATE where image is set: %w", m.GetPropagation(), errdefs.ErrInvalidArgument)
	case m.GetImage() == nil && m.GetImageSubPath() != "":
		return fmt.Errorf("image_sub_path: %s: it is for mounts with an image: %w", Shown(m.GetImageSubPath()), errdefs.ErrInvalidArgument)
	case m.GetImageSubPath() != "" && (!filepath.IsLocal(m.GetImageSubPath()) || strings.ContainsRune(m.GetImageSubPath(), 0)):
		return fmt.Errorf("image_sub_path: %s: it must be a path within the image, relative and without ..: %w", Shown(m.GetImageSubPath()), errdefs.ErrInvalidArgument)
	case m.GetImage() == nil && !isAbs(m.GetHostPath()):
		return fmt.Errorf("host_path: %s: it must be an absolute path: %w", Shown(m.GetHostPath()), errdefs.ErrInvalidArgument)
	case m.GetPropagation() < runtime.MountPropagation_PROPAGATION_PRIVATE || m.GetPropagation() > runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		return fmt.Errorf("propagation: %d is no propagation; use PROPAGATION_PRIVATE, PROPAGATION_HOST_TO_CONTAINER or PROPAGATION_BIDIRECTIONAL: %w", m.GetPropagation(), errdefs.ErrInvalidArgument)
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return fmt.Errorf("recursive_read_only: it needs readonly as well: %w", errdefs.ErrInvalidArgument)
	case m.GetRecursiveReadOnly() && m.GetPropagation() != runtime.MountPropagation_PROPAGATION_PRIVATE:
		return fmt.Errorf("recursive_read_only: it needs propagation PROPAGATION_PRIVATE, not %s: %w", m.GetPropagation(), errdefs.ErrInvalidArgument)
	}
	if len(m.GetUidMappings())+len(m.GetGidMappings()) > 0 {
		if err := checkMappings("uidMappings", m.GetUidMappings()); err != nil {
			return err
		}
		if err := checkMappings("gidMappings", m.GetGidMappings()); err != nil {
			return err
		}
	}
	for i, option := range m.GetMountOptions() {
		if !slices.Contains(mountOptions, option) {
			return fmt.Errorf("mount_options[%d]: %s is not allowed; allowed are %s: %w", i, Shown(option), strings.Join(mountOptions, ", "), errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func twice(i int, m *runtime.Mount) error {
	return fmt.Errorf("mounts[%d].container_path: %s is mounted twice: remove one of the mounts: %w", i, Shown(m.GetContainerPath()), errdefs.ErrInvalidArgument)
}

// CheckDevice says what is wrong with a CRI device; the error starts with the
// name of the field.
func CheckDevice(d *runtime.Device) error {
	switch {
	case !isAbs(d.GetHostPath()):
		return fmt.Errorf("host_path: %s: it must be an absolute path: %w", Shown(d.GetHostPath()), errdefs.ErrInvalidArgument)
	case d.GetContainerPath() != "" && (!isAbs(d.GetContainerPath()) || path.Clean(d.GetContainerPath()) == "/"):
		return fmt.Errorf("container_path: %s: it must be an absolute path below /, or empty for that of the host: %w", Shown(d.GetContainerPath()), errdefs.ErrInvalidArgument)
	case d.GetPermissions() == "" || strings.Trim(d.GetPermissions(), rwm) != "" || len(d.GetPermissions()) > len(rwm):
		return fmt.Errorf("permissions: %s: give one or more of r (read), w (write), m (make the node): %w", Shown(d.GetPermissions()), errdefs.ErrInvalidArgument)
	}
	return nil
}

func checkHiddenPaths(sc *runtime.LinuxContainerSecurityContext) error {
	for _, list := range []struct {
		field string
		paths []string
	}{{"masked_paths", sc.GetMaskedPaths()}, {"readonly_paths", sc.GetReadonlyPaths()}} {
		for i, p := range list.paths {
			if !isAbs(p) {
				return fmt.Errorf("linux.security_context.%s[%d]: %s: it must be an absolute path: %w", list.field, i, Shown(p), errdefs.ErrInvalidArgument)
			}
		}
	}
	return nil
}
