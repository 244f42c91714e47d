package kubelet

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// cgroupRoots are the node's own cgroup in each hierarchy there is.
func (n *node) cgroupRoots() ([]string, error) {
	const root = "/sys/fs/cgroup/"
	if _, err := os.Stat(root + "cgroup.controllers"); err == nil {
		return []string{root + n.daemon.CgroupParent}, nil
	}
	hierarchies, err := filepath.Glob(root + "*/cgroup.procs")
	if err != nil {
		return nil, err
	}
	var roots []string
	for _, h := range hierarchies {
		roots = append(roots, filepath.Dir(h)+"/"+n.daemon.CgroupParent)
	}
	return roots, nil
}

// makeCgroups makes the root of the kubelet's cgroups, which it wants to find
// in every hierarchy.
func (n *node) makeCgroups() error {
	roots, err := n.cgroupRoots()
	for _, root := range roots {
		err = errors.Join(err, os.MkdirAll(root, 0o755))
	}
	return err
}

// removeCgroups removes those that the kubelet keeps for pods to come. One of a
// pod that is left holds them, which is an error.
func (n *node) removeCgroups() error {
	roots, err := n.cgroupRoots()
	for _, root := range roots {
		for _, name := range []string{"kubepods/besteffort", "kubepods/burstable", "kubepods"} {
			if rerr := os.Remove(root + "/" + name); !errors.Is(rerr, fs.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
	}
	return err
}
