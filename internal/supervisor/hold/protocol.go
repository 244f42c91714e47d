// Package hold is the process that keeps FIFOs open while the daemon is down.
//
// What a container wrote last stays in the kernel's buffer of its FIFO; when
// the shim and the daemon are both gone, the kernel drops it, unless somebody
// has the FIFO open. That is all that this process does: it opens what it is
// told to, reads nothing, and closes it when it is told to.
//
// There is one such process for each state directory. It ends by itself when
// it holds nothing and no client is connected. The protocol (FORMAT.md in
// internal/supervisor) is spoken by internal/supervisor's Hold.
//
// Concurrency: a Server serves each connection in a goroutine of its own, all
// of which end with Run.
package hold

// Version is the protocol's; a server refuses another one.
const Version = 1

// Limits of a request.
const (
	MaxLine  = 64 << 10 // bytes, newline included
	MaxKey   = 256      // bytes
	MaxPaths = 64
)

// Places under the state directory.
const (
	Dir    = "supervisor"
	Socket = "hold.sock"
	lock   = "hold.lock"
	// Log is where the process writes what goes wrong.
	Log = "hold.log"
)

// Operations.
const (
	OpKeep    = "keep"
	OpRelease = "release"
	OpKeys    = "keys"
	OpLeave   = "leave"
)

// A Request is one line of JSON.
type Request struct {
	Version int    `json:"v"`
	Op      string `json:"op"`
	Key     string `json:"key,omitempty"`
	// Paths are relative to the state directory.
	Paths []string `json:"paths,omitempty"`
}

// A Response is one line of JSON.
type Response struct {
	Version int    `json:"v"`
	OK      bool   `json:"ok"`
	Error   string `json:"error,omitempty"`
	// PID and Keys answer OpKeys.
	PID  int                 `json:"pid,omitempty"`
	Keys map[string][]string `json:"keys,omitempty"`
}
