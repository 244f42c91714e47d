// Package host changes what the kernel holds for pods: namespaces, mounts,
// directories, processes and cgroups.
//
// Every function takes the wanted state: applying it twice is harmless, and
// what a crash left half made is repaired by the next call or taken away by
// the opposite one. What is not there is already removed. No function keeps
// state of its own but Cgroups, which keeps what it found at the start and a
// connection to systemd.
//
// Pinned namespaces are bind mounts of /proc/thread-self/ns/* onto plain
// files. The propagation of the tree that holds them is left as found. Other
// mount namespaces (a systemd service's, a container's before it has left the
// host's tree) may hold copies of such a mount, and each copy would keep the
// namespace alive. So a pin is taken away in two moves: it is unmounted, which
// reaches the copies that receive our mount events, and its file is unlinked,
// upon which the kernel detaches the mounts on that file in every other mount
// namespace. MountShm's directory goes the same way.
//
// All functions may be called concurrently; calls that concern one directory
// or one cgroup are for the caller to put in order. Namespaces belong to
// threads, so whatever enters one runs on a thread that no other goroutine
// uses, and never on the process's main thread, through which others see the
// process (/proc/self).
package host
