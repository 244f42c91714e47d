package podrun

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
	"berth/internal/host"
	"berth/internal/manifest"
)

// errLeftAlone is of directories that berth run did not make for the pod, or
// cannot know to be its own.
var errLeftAlone = errors.New("left alone")

// maxMark bounds a mark's size.
const maxMark = 64 << 10

// Remove removes a stopped pod: its containers, its directories where berth run
// made it, and its sandbox. Directories that are not the pod's do not keep it:
// they are left alone, with an error that names them. Other failures with them
// keep the sandbox, which alone says where they are.
func Remove(ctx context.Context, cl *client.Client, roots Roots, pod *runtime.PodSandbox) error {
	containers, err := containersOf(ctx, cl, pod)
	if err != nil {
		return err
	}
	for _, c := range containers {
		if _, err := cl.Runtime.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: c.Id}); err != nil {
			return fmt.Errorf("remove container %s: %w", c.GetMetadata().GetName(), err)
		}
	}
	dirErr := removeDirs(roots, pod)
	if dirErr != nil {
		dirErr = fmt.Errorf("remove pod %s: %w", client.PodName(pod.Metadata), dirErr)
		if !errors.Is(dirErr, errLeftAlone) {
			return dirErr
		}
	}
	if _, err := cl.Runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: pod.Id}); err != nil {
		return errors.Join(dirErr, fmt.Errorf("remove pod %s: %w", client.PodName(pod.Metadata), err))
	}
	return dirErr
}

// removeDirs removes what makeDirs made for the pod, with all that containers
// put there. It is idempotent.
//
// Anyone who can make a pod can write its annotations, so the annotation only
// says that there are directories; where they are follows from the roots and
// the pod's name and UID. In the run directory, which root alone can enter, is
// the mark that makes it the pod's.
func removeDirs(roots Roots, pod *runtime.PodSandbox) error {
	said := pod.GetAnnotations()[manifest.AnnotationRunDir]
	if said == "" {
		return nil
	}
	meta := pod.GetMetadata()
	uid, logs := meta.GetUid(), manifest.LogDirName(meta.GetNamespace(), meta.GetName(), meta.GetUid())
	dir := filepath.Join(roots.Run, uid)
	if !isName(uid) || !isName(logs) || said != dir {
		return fmt.Errorf("its volumes are said to be in %q, which is not %s: %w; if `berth run --run-root` made them, remove them by hand", said, dir, errLeftAlone)
	}
	m, err := readMark(roots.Run, uid)
	if errors.Is(err, fs.ErrNotExist) {
		// Not there, or made only just so far; with anything in it, it stays.
		err := os.Remove(dir)
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOTDIR) {
			return fmt.Errorf("%s without its %s is %w: %w", dir, markFile, errLeftAlone, err)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err != nil {
		return err
	}
	if err := checkMark(m, roots, uid, logs); err != nil {
		return err
	}
	return removeMarked(roots, m, uid, logs)
}

// removeMarked removes directories that are the pod's, the mark last.
func removeMarked(roots Roots, m *mark, uid, logs string) error {
	dir := filepath.Join(roots.Run, uid)
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
	if err := host.RemoveTree(roots.Log, logs); err != nil {
		return err
	}
	if err := host.RemoveTree(roots.Run, uid); err != nil {
		return err
	}
	for _, parent := range m.Made {
		if err := os.Remove(parent); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// isName tells whether s is the name of a directory entry.
func isName(s string) bool { return s != "." && filepath.IsLocal(s) && !strings.Contains(s, "/") }

// checkMark sees that the mark is the pod's and names no place outside the
// roots.
func checkMark(m *mark, roots Roots, uid, logs string) error {
	dir := filepath.Join(roots.Run, uid)
	if m.Version != markVersion || m.UID != uid || filepath.Base(m.LogDir) != logs {
		return fmt.Errorf("run directory %s is marked for pod UID %q with logs in %q (version %d): %w", dir, m.UID, m.LogDir, m.Version, errLeftAlone)
	}
	if filepath.Dir(m.LogDir) != roots.Log {
		return fmt.Errorf("its logs are in %s, not in %s: use `--log-root %s`", m.LogDir, roots.Log, filepath.Dir(m.LogDir))
	}
	for _, parent := range m.Made {
		if !isAbove(parent, roots.Run) && !isAbove(parent, roots.Log) {
			return fmt.Errorf("run directory %s claims to have made %q: %w", dir, parent, errLeftAlone)
		}
	}
	return nil
}

// isAbove tells whether a clean path is dir or above it.
func isAbove(path, dir string) bool {
	return filepath.IsAbs(path) && filepath.Clean(path) == path && (dir == path || strings.HasPrefix(dir, strings.TrimSuffix(path, "/")+"/"))
}

// readMark reads the mark of a run directory that is nobody else's, without
// following a link below the root. fs.ErrNotExist: there is none.
func readMark(root, name string) (_ *mark, err error) {
	top, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, top.Close()) }()
	dir, err := openBelow(top, name, unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	for _, f := range []*os.File{top, dir} {
		st, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if err := checkOwner(f.Name(), st); err != nil {
			return nil, fmt.Errorf("%w: %w", errLeftAlone, err)
		}
	}
	f, err := openBelow(dir, markFile, unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	text, err := io.ReadAll(io.LimitReader(f, maxMark))
	if err != nil {
		return nil, err
	}
	var m mark
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return &m, nil
}

// openBelow opens an entry of a directory. A symbolic link is none of ours.
func openBelow(dir *os.File, name string, flags uint64) (*os.File, error) {
	path := filepath.Join(dir.Name(), name)
	for {
		fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
			Flags:   flags | unix.O_RDONLY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
		})
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR): // EAGAIN: a rename was under way
		case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
			return nil, fmt.Errorf("%s: %w: %w", path, errLeftAlone, err)
		default:
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
	}
}
