package podrun

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"berth/internal/host"
	"berth/internal/manifest"
)

// The default places of pods' directories. The logs are where a kubelet has
// them, so that log shippers find them.
const (
	DefaultRunRoot = "/var/lib/berth-run"
	DefaultLogRoot = "/var/log/pods"
)

// markFile, in a run directory, says whose it is and what else was made with
// it. Containers never see it: their volumes are directories beside it.
const markFile = "pod.json"

// A mark is markFile's content.
type mark struct {
	Version int    `json:"version"`
	UID     string `json:"uid"`
	LogDir  string `json:"logDir"`
	// Made are parents that did not exist, the innermost first.
	Made []string `json:"made,omitempty"`
}

const markVersion = 1

// makeDirs makes the directories of a pod: volumes, logs, and a mark by which
// removeDirs knows them. When it fails, removeDirs takes away what it made.
func makeDirs(p *manifest.Plan, uid string) error {
	m := mark{Version: markVersion, UID: uid, LogDir: p.LogDir}
	for _, dir := range []string{filepath.Dir(p.RunDir), filepath.Dir(p.LogDir)} {
		made, err := makeParents(dir)
		m.Made = append(m.Made, made...)
		if err != nil {
			return err
		}
	}
	if err := os.Mkdir(p.RunDir, 0o711); err != nil {
		return fmt.Errorf("directory of the pod's volumes: %w", err)
	}
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(p.RunDir, markFile), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("directory of the pod's volumes: %w", err)
	}
	if err := os.Mkdir(p.LogDir, 0o755); err != nil {
		return fmt.Errorf("directory of the pod's logs: %w", err)
	}
	for _, c := range append(p.Init, p.Containers...) {
		if err := os.Mkdir(filepath.Join(p.LogDir, c.Name), 0o755); err != nil {
			return fmt.Errorf("directory of the logs of container %s: %w", c.Name, err)
		}
	}
	for _, v := range p.Volumes {
		if err := prepareVolume(v); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return nil
}

// makeParents makes a directory and returns those it had to make, the innermost
// first.
func makeParents(dir string) ([]string, error) {
	err := os.Mkdir(dir, 0o755)
	switch {
	case err == nil:
		return []string{dir}, nil
	case errors.Is(err, fs.ErrExist):
		return nil, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	made, err := makeParents(filepath.Dir(dir))
	if err != nil {
		return made, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return made, err
	}
	return append([]string{dir}, made...), nil
}

// prepareVolume makes an emptyDir, or sees that a host's path is what it should
// be.
func prepareVolume(v manifest.Volume) error {
	if v.HostPathType != nil {
		return prepareHostPath(v.Path, *v.HostPathType)
	}
	if err := os.MkdirAll(v.Path, 0o711); err != nil {
		return err
	}
	if v.Memory {
		options := "mode=0777"
		if v.Size > 0 {
			options += fmt.Sprintf(",size=%d", v.Size)
		}
		if err := unix.Mount("tmpfs", v.Path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
			return fmt.Errorf("mount a tmpfs at %s: %w", v.Path, err)
		}
	}
	mode := fs.FileMode(0o777)
	if v.Group != nil {
		if err := os.Chown(v.Path, -1, int(*v.Group)); err != nil {
			return err
		}
		mode |= fs.ModeSetgid
	}
	// Not with Mkdir, which the umask would cut.
	return os.Chmod(v.Path, mode)
}

// prepareHostPath does what the type of a hostPath volume asks for.
func prepareHostPath(path string, kind corev1.HostPathType) error {
	switch kind {
	case corev1.HostPathUnset:
		return nil
	case corev1.HostPathDirectoryOrCreate:
		if err := os.MkdirAll(path, 0o755); err != nil {
			return fmt.Errorf("hostPath: %w", err)
		}
	case corev1.HostPathFileOrCreate:
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err == nil {
			err = f.Close()
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("hostPath: %w", err)
		}
	}
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("hostPath of type %s: %w", kind, err)
	}
	want := map[corev1.HostPathType]fs.FileMode{
		corev1.HostPathDirectoryOrCreate: fs.ModeDir, corev1.HostPathDirectory: fs.ModeDir,
		corev1.HostPathFileOrCreate: 0, corev1.HostPathFile: 0, corev1.HostPathSocket: fs.ModeSocket,
		corev1.HostPathCharDev: fs.ModeDevice | fs.ModeCharDevice, corev1.HostPathBlockDev: fs.ModeDevice,
	}[kind]
	if st.Mode().Type() != want {
		return fmt.Errorf("hostPath %s: want a %s, found mode %s: %w", path, kind, st.Mode(), errdefs.ErrFailedPrecondition)
	}
	return nil
}

// removeDirs removes what makeDirs made for the pod with this UID, with all
// that containers put there. It is idempotent. A directory without the pod's
// mark is left alone, with an error: an annotation of a pod says where it is,
// and anyone may have written that.
func removeDirs(dir, uid string) error {
	if !filepath.IsAbs(dir) || filepath.Base(dir) != uid {
		return fmt.Errorf("run directory %q of pod UID %s is none that berth run makes: left alone: %w", dir, uid, errdefs.ErrFailedPrecondition)
	}
	m, err := readMark(dir)
	if errors.Is(err, fs.ErrNotExist) {
		// Not there, or made only just so far; with anything in it, it stays.
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("run directory without its %s is left alone: %w", markFile, err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	if m.UID != uid || m.Version != markVersion {
		return fmt.Errorf("run directory %s is marked for pod UID %q (version %d): left alone: %w", dir, m.UID, m.Version, errdefs.ErrFailedPrecondition)
	}
	// A container may have left mounts in a volume.
	if err := host.UnmountBelow(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == markFile {
			continue
		}
		if err := host.RemoveTree(dir, e.Name()); err != nil {
			return err
		}
	}
	if err := host.RemoveTree(filepath.Dir(m.LogDir), filepath.Base(m.LogDir)); err != nil {
		return err
	}
	if err := host.RemoveTree(filepath.Dir(dir), uid); err != nil {
		return err
	}
	for _, parent := range m.Made {
		if err := os.Remove(parent); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func readMark(dir string) (*mark, error) {
	text, err := os.ReadFile(filepath.Join(dir, markFile))
	if err != nil {
		return nil, err
	}
	var m mark
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, markFile), err)
	}
	return &m, nil
}
