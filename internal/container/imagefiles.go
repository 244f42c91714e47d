package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
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

// keepUsers and keepSize bound userFiles: images are few and their files small.
// Larger ones are read each time.
const keepUsers, keepSize = 256, 64 << 10

func (u *userFiles) get(chain string) *users {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.known[chain]
}

func (u *userFiles) put(chain string, found *users) {
	if len(found.passwd)+len(found.group) > keepSize {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.known == nil || len(u.known) >= keepUsers {
		u.known = map[string]*users{}
	}
	u.known[chain] = found
}

// rootfs is where a root is mounted while its image is looked at.
func (s *Service) rootfs(id string) string {
	return filepath.Join(s.Paths.ContainerState(id), "rootfs")
}

// viewOf is the snapshot through which a container's image is looked at before
// the container has one of its own.
func viewOf(id string) string { return id + "-view" }

// findUser finds the container's user in the image. The image's files are read
// once, by the first container of it.
func (s *Service) findUser(ctx context.Context, c *creation) error {
	if err := s.Images.Unpack(ctx, c.img); err != nil {
		return err
	}
	found := s.users.get(c.img.ChainID)
	if found == nil {
		var err error
		if found, err = s.viewUsers(ctx, c); err != nil {
			return err
		}
		s.users.put(c.img.ChainID, found)
	}
	var err error
	c.user, err = spec.ResolveUser(c.rec.Config.GetLinux().GetSecurityContext(), c.img.Config.User,
		reader(found.passwd), reader(found.group))
	return err
}

func (s *Service) viewUsers(ctx context.Context, c *creation) (found *users, err error) {
	layers, key := s.client.SnapshotService(c.rec.Snapshotter), viewOf(c.rec.ID)
	view, err := layers.View(ctx, key, c.img.ChainID, snapshots.WithLabels(s.marks(c.rec)))
	if err != nil {
		return nil, err
	}
	err = s.withRoot(c.rec.ID, view, func(root string) error { found, err = readUsers(root); return err })
	return found, errors.Join(err, layers.Remove(ctx, key))
}

func reader(file []byte) io.Reader {
	if file == nil {
		return nil
	}
	return bytes.NewReader(file)
}

func (s *Service) withRoot(id string, from []mount.Mount, look func(root string) error) (err error) {
	root := s.rootfs(id)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	if err := mount.All(from, root); err != nil {
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

// planVolumes names a directory for each volume that the image declares.
func (s *Service) planVolumes(c *creation) {
	for i, path := range spec.VolumePaths(&c.img.Config, c.rec.Config) {
		c.vols = append(c.vols, spec.Volume{ContainerPath: path, HostPath: filepath.Join(s.Paths.Volumes(c.rec.ID), strconv.Itoa(i))})
	}
}

// fillVolumes makes the volumes' directories, each with what the image has at
// its path.
func (s *Service) fillVolumes(c *creation) error {
	if len(c.vols) == 0 {
		return nil
	}
	return s.withRoot(c.rec.ID, c.root, func(root string) error {
		uid, gid := spec.HostRoot(c.box.Config)
		for _, v := range c.vols {
			if err := fillVolume(root, v, int(uid), int(gid)); err != nil {
				return fmt.Errorf("volume %s of the image: %w", v.ContainerPath, err)
			}
		}
		return nil
	})
}

// fillVolume makes one, which uid and gid own unless the image says otherwise.
func fillVolume(root string, v spec.Volume, uid, gid int) error {
	if err := os.MkdirAll(v.HostPath, 0o755); err != nil {
		return err
	}
	if err := os.Chown(v.HostPath, uid, gid); err != nil {
		return err
	}
	from, err := fs.RootPath(root, v.ContainerPath)
	if err != nil {
		return err
	}
	info, err := os.Stat(from)
	if errors.Is(err, os.ErrNotExist) || err == nil && !info.IsDir() {
		return nil
	}
	if err != nil {
		return err
	}
	return fs.CopyDir(v.HostPath, from)
}
