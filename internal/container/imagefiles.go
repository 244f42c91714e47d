package container

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/continuity/fs"

	"berth/internal/host"
	"berth/internal/spec"
)

// maxUserFile bounds what is read of an image's /etc/passwd and /etc/group.
const maxUserFile = 4 << 20

// userFiles keep the users of images by chain ID, which never changes, so that
// a root file system is mounted once an image and not once a container.
type userFiles struct {
	mu    sync.Mutex // guards known
	known map[string]*users
}

type users struct{ passwd, group []byte }

// keepUsers bounds userFiles; the files are small and the images few.
const keepUsers = 256

func (u *userFiles) get(chain string) *users {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.known[chain]
}

func (u *userFiles) put(chain string, found *users) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.known == nil || len(u.known) >= keepUsers {
		u.known = map[string]*users{}
	}
	u.known[chain] = found
}

// rootfs is where a container's root is mounted while its image is looked at.
func (s *Service) rootfs(id string) string {
	return filepath.Join(s.Paths.ContainerState(id), "rootfs")
}

// readImage finds the container's user in the image, and makes its volumes
// with what the image has there.
func (s *Service) readImage(c *creation) error {
	found := s.users.get(c.img.ChainID)
	paths := spec.VolumePaths(&c.img.Config, c.rec.Config)
	if found == nil || len(paths) > 0 {
		err := s.withRoot(c, func(root string) (err error) {
			if found, err = readUsers(root); err != nil {
				return err
			}
			c.vols, err = s.makeVolumes(c.rec.ID, root, paths)
			return err
		})
		if err != nil {
			return err
		}
		s.users.put(c.img.ChainID, found)
	}
	var err error
	c.user, err = spec.ResolveUser(c.rec.Config.GetLinux().GetSecurityContext(), c.img.Config.User,
		reader(found.passwd), reader(found.group))
	return err
}

func reader(file []byte) io.Reader {
	if file == nil {
		return nil
	}
	return bytes.NewReader(file)
}

func (s *Service) withRoot(c *creation, look func(root string) error) (err error) {
	root := s.rootfs(c.rec.ID)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	if err := mount.All(c.root, root); err != nil {
		return fmt.Errorf("mount the image: %w", err)
	}
	defer func() { err = errors.Join(err, host.Unmount(root), os.Remove(root)) }()
	return look(root)
}

func readUsers(root string) (*users, error) {
	var u users
	for name, into := range map[string]*[]byte{"/etc/passwd": &u.passwd, "/etc/group": &u.group} {
		text, err := readIn(root, name)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%s of the image: %w", name, err)
		}
		*into = text
	}
	return &u, nil
}

// readIn reads a regular file below root; the image's symbolic links stay in it.
func readIn(root, name string) ([]byte, error) {
	path, err := fs.RootPath(root, name)
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxUserFile {
		return nil, fmt.Errorf("it is no regular file of at most %d bytes", maxUserFile)
	}
	return os.ReadFile(path)
}

// makeVolumes makes a directory for each volume that the image declares,
// filled with what the image has at its path.
func (s *Service) makeVolumes(id, root string, paths []string) ([]spec.Volume, error) {
	var volumes []spec.Volume
	for i, path := range paths {
		dir := filepath.Join(s.Paths.Volumes(id), strconv.Itoa(i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		volumes = append(volumes, spec.Volume{ContainerPath: path, HostPath: dir})
		from, err := fs.RootPath(root, path)
		if err != nil {
			return nil, fmt.Errorf("volume %s of the image: %w", path, err)
		}
		info, err := os.Stat(from)
		if errors.Is(err, os.ErrNotExist) || err == nil && !info.IsDir() {
			continue
		}
		if err == nil {
			err = fs.CopyDir(dir, from)
		}
		if err != nil {
			return nil, fmt.Errorf("volume %s of the image: %w", path, err)
		}
	}
	return volumes, nil
}
