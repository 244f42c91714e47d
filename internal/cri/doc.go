// Package cri is the gRPC surface: the Container Runtime Interface v1 (cri-api
// v0.37.2) and berth's own small Admin service, on one socket.
//
// A method validates its request, calls the package that does the work, and
// translates the answer; it keeps no state, but encoded entries of lists, each for
// as long as its record stays as it is. Errors carry their kind in
// containerd's errdefs and become gRPC codes in one place, the interceptors of
// server.go. Methods of the CRI that are not here answer Unimplemented with
// their name.
//
// Concurrency: a Server is safe for concurrent use.
package cri
