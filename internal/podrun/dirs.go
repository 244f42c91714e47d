package podrun

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"berth/internal/manifest"
)

// The default places of pods' directories. The logs are where a kubelet has
// them, so that log shippers find them.
const (
	DefaultRunRoot = "/var/lib/berth-run"
	DefaultLogRoot = "/var/log/pods"
)

// Roots are where pods' directories are: volumes and logs. Both are required,
// absolute and clean.
type Roots struct{ Run, Log string }

// rootsOf are the places that a plan was made for.
func rootsOf(p *manifest.Plan) Roots {
	return Roots{Run: filepath.Dir(p.RunDir), Log: filepath.Dir(p.LogDir)}
}

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
//
// Volumes are open to every user of a container, and so must not be reached
// from outside: nobody but root enters the run directory. Containers come to
// their volumes by mounts, which root makes.
func makeDirs(p *manifest.Plan) error {
	roots := rootsOf(p)
	m := mark{Version: markVersion, UID: p.Sandbox.Metadata.Uid, LogDir: p.LogDir}
	for _, root := range []struct {
		dir  string
		mode fs.FileMode
	}{{roots.Run, 0o700}, {roots.Log, 0o755}} {
		made, err := makeParents(root.dir, root.mode)
		m.Made = append(m.Made, made...)
		if err != nil {
			return err
		}
	}
	// What both are below goes last.
	slices.SortStableFunc(m.Made, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	if err := closeRoot(roots.Run); err != nil {
		return err
	}
	if err := os.Mkdir(p.RunDir, 0o700); err != nil {
		return fmt.Errorf("directory of the pod's volumes: %w", err)
	}
	if err := writeMark(p.RunDir, m); err != nil {
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

// writeMark writes a whole mark or none.
func writeMark(dir string, m mark) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, markFile)
	if err := os.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		if gone := os.Remove(path); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
		return err
	}
	return nil
}

// makeParents makes a directory with the mode and returns those it had to make,
// the innermost first.
func makeParents(dir string, mode fs.FileMode) ([]string, error) {
	err := os.Mkdir(dir, mode)
	switch {
	case err == nil:
		return []string{dir}, nil
	case errors.Is(err, fs.ErrExist):
		return nil, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	made, err := makeParents(filepath.Dir(dir), 0o755)
	if err != nil {
		return made, err
	}
	if err := os.Mkdir(dir, mode); err != nil {
		return made, err
	}
	return append([]string{dir}, made...), nil
}

// closeRoot closes a run root to others where it serves pods alone, as one that
// an earlier berth made open. A directory that has something else in it keeps
// its mode.
func closeRoot(root string) error {
	st, err := os.Stat(root)
	if err != nil {
		return fmt.Errorf("directory of pods' volumes: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		entries, err := os.ReadDir(root)
		if err != nil {
			return fmt.Errorf("directory of pods' volumes: %w", err)
		}
		if !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return uuid.Validate(e.Name()) != nil }) {
			if err := os.Chmod(root, 0o700); err != nil {
				return fmt.Errorf("directory of pods' volumes: %w", err)
			}
			return nil
		}
	}
	return checkOwner(root, st)
}

// checkOwner refuses a directory in which somebody else can replace what is
// ours.
func checkOwner(dir string, st fs.FileInfo) error {
	owner := st.Sys().(*syscall.Stat_t).Uid
	if int(owner) != os.Geteuid() {
		return fmt.Errorf("directory %s belongs to UID %d, not to %d: give pods' volumes a directory of their own: %w", dir, owner, os.Geteuid(), errdefs.ErrFailedPrecondition)
	}
	if st.Mode().Perm()&0o022 != 0 && st.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("directory %s (mode %s) can be changed by others: `chmod go-w` it, or give pods' volumes a directory of their own: %w", dir, st.Mode(), errdefs.ErrFailedPrecondition)
	}
	return nil
}

// prepareVolume makes an emptyDir, or sees that a host's path is what it should
// be.
func prepareVolume(v manifest.Volume) error {
	if v.HostPathType != nil {
		return prepareHostPath(v.Path, *v.HostPathType)
	}
	if err := os.MkdirAll(v.Path, 0o700); err != nil {
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
