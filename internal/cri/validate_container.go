package cri

import (
	"path"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/spec"
)

// What execve takes (see its manual page): of one string, and of all.
const (
	maxExecString = 128<<10 - 1
	maxExecTotal  = 6 << 20
)

// validateContainerConfig finds the mistakes in a CreateContainer request for
// the sandbox s, before anything is recorded or made.
func validateContainerConfig(c *runtime.ContainerConfig, s *runtime.PodSandboxConfig) error {
	if c == nil {
		return invalid("config", "it is required")
	}
	if c.GetMetadata() == nil {
		return invalid("metadata", "it is required: it names the container")
	}
	if err := validateName("metadata.name", c.GetMetadata().GetName()); err != nil {
		return err
	}
	if c.GetImage() == nil {
		return invalid("image", "it is required")
	}
	if err := validateImage("image", c.GetImage()); err != nil {
		return err
	}
	if err := validateExec(c); err != nil {
		return err
	}
	if err := validateMetadata("labels", c.GetLabels()); err != nil {
		return err
	}
	if err := validateMetadata("annotations", c.GetAnnotations()); err != nil {
		return err
	}
	if err := validateLogPath("log_path", c.GetLogPath()); err != nil {
		return err
	}
	if proto.Size(c.GetWindows()) > 0 {
		return invalid("windows", "this is a Linux node: leave it unset")
	}
	if _, ok := runtime.Signal_name[int32(c.GetStopSignal())]; !ok {
		return invalid("stop_signal", "%d is no signal of the CRI", c.GetStopSignal())
	}
	if err := validatePaths(c); err != nil {
		return err
	}
	if err := validateResources("linux.resources", c.GetLinux().GetResources()); err != nil {
		return err
	}
	return spec.Check(s, c)
}

// validateExec wants arguments and variables that the kernel takes.
func validateExec(c *runtime.ContainerConfig) error {
	total := 0
	check := func(field, value string) error {
		if strings.ContainsRune(value, 0) {
			return invalid(field, "%s: it holds a NUL byte, which no argument can", shown(value))
		}
		if len(value) > maxExecString {
			return invalid(field, "%d bytes: the kernel takes %d: pass it in a file", len(value), maxExecString)
		}
		total += len(value) + 1
		return nil
	}
	for i, arg := range c.GetCommand() {
		if err := check(indexed("command", i), arg); err != nil {
			return err
		}
	}
	for i, arg := range c.GetArgs() {
		if err := check(indexed("args", i), arg); err != nil {
			return err
		}
	}
	for i, kv := range c.GetEnvs() {
		n := len(kv.GetKey()) + 1 + len(kv.GetValue())
		if n > maxExecString {
			return invalid(indexed("envs", i), "%s has %d bytes: the kernel takes %d: pass it in a file", shown(kv.GetKey()), n, maxExecString)
		}
		total += n + 1
	}
	if total > maxExecTotal {
		return invalid("envs", "command, args and variables have %d bytes altogether, the kernel takes %d: pass them in files", total, maxExecTotal)
	}
	return nil
}

// validateLogPath: it names a file below the sandbox's log directory. Empty is
// no log.
func validateLogPath(field, p string) error {
	if p == "" {
		return nil
	}
	if path.IsAbs(p) {
		return invalid(field, "%s: it is relative to the sandbox's log_directory, so it must not be absolute", shown(p))
	}
	if !filepath.IsLocal(p) || path.Clean(p) == "." || strings.HasSuffix(p, "/") || strings.ContainsRune(p, 0) {
		return invalid(field, "%s: it must name a file within the sandbox's log_directory", shown(p))
	}
	if len(p) > maxPath {
		return invalid(field, "%s: a path is no longer than %d bytes", shown(p), maxPath)
	}
	return nil
}

// validatePaths looks at the lengths; spec.Check at all else.
func validatePaths(c *runtime.ContainerConfig) error {
	check := func(field, p string) error {
		if len(p) > maxPath {
			return invalid(field, "%s: a path is no longer than %d bytes", shown(p), maxPath)
		}
		return nil
	}
	if err := check("working_dir", c.GetWorkingDir()); err != nil {
		return err
	}
	for i, m := range c.GetMounts() {
		if err := check(indexed("mounts", i)+".container_path", m.GetContainerPath()); err != nil {
			return err
		}
		if err := check(indexed("mounts", i)+".host_path", m.GetHostPath()); err != nil {
			return err
		}
		if err := check(indexed("mounts", i)+".image_sub_path", m.GetImageSubPath()); err != nil {
			return err
		}
		if m.GetImage() != nil {
			if err := validateImage(indexed("mounts", i)+".image", m.GetImage()); err != nil {
				return err
			}
		}
	}
	for i, d := range c.GetDevices() {
		if err := check(indexed("devices", i)+".container_path", d.GetContainerPath()); err != nil {
			return err
		}
		if err := check(indexed("devices", i)+".host_path", d.GetHostPath()); err != nil {
			return err
		}
	}
	return nil
}
