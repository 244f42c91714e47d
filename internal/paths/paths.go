// Package paths gives the place of every file that berth keeps.
//
// Each path is a pure function of the daemon's two directories and an object's
// ID, so that none is ever unknown: after a crash, whatever an ID left behind
// is found by its name alone. The package touches no file.
package paths

import "path/filepath"

// Paths are the two directories that a daemon owns. Both are absolute.
type Paths struct {
	// Root holds what outlasts a reboot (default /var/lib/berth).
	Root string
	// State holds what a reboot clears: sockets, FIFOs, pinned namespaces and
	// mounts (default /run/berth, on a tmpfs).
	State string
}

// Lock is the file that the daemon holding Root keeps locked.
func (p Paths) Lock() string { return filepath.Join(p.Root, "lock") }

// Records is the record store's database.
func (p Paths) Records() string { return filepath.Join(p.Root, "records.db") }

// Containerd is the persistent directory of the embedded containerd.
func (p Paths) Containerd() string { return filepath.Join(p.Root, "containerd") }

// CNI is the directory in which libcni keeps results.
func (p Paths) CNI() string { return filepath.Join(p.Root, "cni") }

// Sandboxes is the parent of every sandbox's persistent files.
func (p Paths) Sandboxes() string { return filepath.Join(p.Root, "sandboxes") }

// Sandbox is the directory of a sandbox's persistent files.
func (p Paths) Sandbox(id string) string { return filepath.Join(p.Sandboxes(), id) }

// Hostname is the file mounted over a container's /etc/hostname.
func (p Paths) Hostname(sandboxID string) string {
	return filepath.Join(p.Sandbox(sandboxID), "hostname")
}

// Hosts is the file mounted over a container's /etc/hosts.
func (p Paths) Hosts(sandboxID string) string { return filepath.Join(p.Sandbox(sandboxID), "hosts") }

// ResolvConf is the file mounted over a container's /etc/resolv.conf.
func (p Paths) ResolvConf(sandboxID string) string {
	return filepath.Join(p.Sandbox(sandboxID), "resolv.conf")
}

// Containers is the parent of every container's persistent files.
func (p Paths) Containers() string { return filepath.Join(p.Root, "containers") }

// Container is the directory of a container's persistent files.
func (p Paths) Container(id string) string { return filepath.Join(p.Containers(), id) }

// Volumes is the parent of the volumes that a container's image declares.
func (p Paths) Volumes(containerID string) string {
	return filepath.Join(p.Container(containerID), "volumes")
}

// ContainerdState is the volatile directory of the embedded containerd.
func (p Paths) ContainerdState() string { return filepath.Join(p.State, "containerd") }

// ContainerdSocket is the socket of the embedded containerd.
func (p Paths) ContainerdSocket() string { return filepath.Join(p.State, "containerd.sock") }

// HoldSocket is the socket of the process that holds stdio open.
func (p Paths) HoldSocket() string { return filepath.Join(p.State, "supervisor", "hold.sock") }

// SandboxStates is the parent of every sandbox's volatile files.
func (p Paths) SandboxStates() string { return filepath.Join(p.State, "sandboxes") }

// SandboxState is the directory of a sandbox's volatile files.
func (p Paths) SandboxState(id string) string { return filepath.Join(p.SandboxStates(), id) }

// Namespaces is the directory of a sandbox's pinned namespaces: net, ipc, uts
// and pid.
func (p Paths) Namespaces(sandboxID string) string {
	return filepath.Join(p.SandboxState(sandboxID), "ns")
}

// Namespace is the pinned namespace of one kind, one of net, ipc, uts, pid.
func (p Paths) Namespace(sandboxID, kind string) string {
	return filepath.Join(p.Namespaces(sandboxID), kind)
}

// Shm is the tmpfs mounted at a container's /dev/shm.
func (p Paths) Shm(sandboxID string) string { return filepath.Join(p.SandboxState(sandboxID), "shm") }

// ContainerStates is the parent of every container's volatile files.
func (p Paths) ContainerStates() string { return filepath.Join(p.State, "containers") }

// ContainerState is the directory of a container's volatile files.
func (p Paths) ContainerState(id string) string { return filepath.Join(p.ContainerStates(), id) }
