// Package supervisor is the daemon's side of the processes that outlive it: the
// hold process, which keeps the FIFOs of containers open while the daemon is
// down, and the init processes of PID namespaces that pods share. The
// processes' own side is in the packages below, which the program
// containerd-shim-berth-v1 is made of.
//
// Invariants:
//   - One hold process a state directory, guarded by a lock file; a daemon
//     finds the one that runs or starts one, and again when it dies.
//   - A pod's init exists exactly as long as its PID namespace can be found by
//     its pin: before it is pinned, it ends with the daemon.
//   - Neither ends with the daemon, and neither stays a zombie while the
//     daemon runs.
//
// Concurrency: all of it is safe for concurrent use. A Hold runs one goroutine
// and one for its connection, a Reaper one for each process that it watches;
// they end with Close.
package supervisor
