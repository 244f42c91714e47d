// Package wire is what the daemon and the supervisor say to one another beside
// containerd's Task API: where a supervisor's files are, the options of a task,
// and the control protocol. FORMAT.md in internal/supervisor describes it.
//
// Invariant: everything here has a version; a supervisor may be older or newer
// than the daemon. Concurrency: the package holds no state.
package wire

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
)

// Version is the control protocol's and the state files'; another one is
// refused.
const Version = 1

// Dir is the directory of all supervisors below the daemon's state directory.
const Dir = "supervisor"

// RuntimeType is containerd's name of the runtime that is the supervisor.
const RuntimeType = "io.containerd.berth.v1"

// OptionsType is the type URL of Options in CreateTaskRequest.Options; the
// value is JSON.
const OptionsType = "berth.dev/supervisor/v1/Options"

// Options tell what the OCI spec of a container does not.
type Options struct {
	// SystemdCgroup has systemd make the container's cgroup.
	SystemdCgroup bool `json:"systemd_cgroup,omitempty"`
	// Stdio is the directory of the container's FIFOs and of its log's cursor,
	// absolute. Without it the container has no output.
	Stdio string `json:"stdio,omitempty"`
	// LogPath is the log file; empty: none.
	LogPath string `json:"log_path,omitempty"`
	// Stdin gives the container a standard input, StdinOnce says that it ends
	// with the first client's.
	Stdin     bool `json:"stdin,omitempty"`
	StdinOnce bool `json:"stdin_once,omitempty"`
}

var name = regexp.MustCompile(`^[a-z0-9-]{1,11}$`)

// ValidName tells whether a supervisor may have this name. It is short, for it
// is part of a socket's path.
func ValidName(s string) bool { return name.MatchString(s) }

// NodeName is the name of the supervisor that all pods of a version share.
func NodeName(version string) string { return "n-" + digest(version, 8) }

// PodName is the name of a pod's own supervisor.
func PodName(version, sandboxID string) string { return "p" + digest(version+"\x00"+sandboxID, 10) }

func digest(s string, digits int) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])[:digits]
}

// Paths of the supervisor called name below the daemon's state directory.
func Socket(state, name string) string { return filepath.Join(state, Dir, name) }

// Home is the directory of its files.
func Home(state, name string) string { return filepath.Join(state, Dir, name+".d") }

// Roots is where it mounts containers' root file systems for a moment. The root
// of a container with a user namespace has to pass it, so it is not in Home.
func Roots(state, name string) string { return filepath.Join(state, RootsDir, name) }

// RootsDir is the directory of all of these, below the daemon's.
const RootsDir = "roots"

// Names in a supervisor's home.
const (
	Control = "control" // the socket of the control protocol
	Lock    = "lock"
	Log     = "log"   // what it and libcontainer say
	Tasks   = "tasks" // a state file for each container
	Run     = "run"   // libcontainer's state
)

// Operations of the control protocol.
const (
	// OpWatch answers and then keeps the connection until one side ends. A
	// supervisor that is watched does not end by itself.
	OpWatch = "watch"
	// OpTasks lists the tasks.
	OpTasks = "tasks"
	// OpReopen opens the log file of a container again.
	OpReopen = "reopen"
	// OpDelete kills a container where it runs, and removes it.
	OpDelete = "delete"
	// OpAttach answers and then sends frames of output.
	OpAttach = "attach"
	// OpKeep answers with the descriptors that a container's stdio and end
	// depend on, as control messages; whoever has them can give them to the
	// next supervisor.
	OpKeep = "keep"
	// OpRestore gives them back, with the request.
	OpRestore = "restore"
)

// A Request is one line of JSON.
type Request struct {
	Version int    `json:"v"`
	Op      string `json:"op"`
	ID      string `json:"id,omitempty"`
	// Stdout and Stderr are what an attaching client wants.
	Stdout bool `json:"stdout,omitempty"`
	Stderr bool `json:"stderr,omitempty"`
	// Files names the descriptors that come with OpRestore, in order.
	Files []string `json:"files,omitempty"`
}

// A Response is one line of JSON.
type Response struct {
	Version int    `json:"v"`
	OK      bool   `json:"ok"`
	Error   string `json:"error,omitempty"`
	// Kind is the error's, one of the Kind constants.
	Kind  string   `json:"kind,omitempty"`
	PID   int      `json:"pid,omitempty"`
	Tasks []Task   `json:"tasks,omitempty"`
	Files []string `json:"files,omitempty"`
	// StdinClosed answers OpAttach: the container's input has ended.
	StdinClosed bool `json:"stdin_closed,omitempty"`
}

// A Task is a container as OpTasks shows it.
type Task struct {
	ID     string `json:"id"`
	PID    int    `json:"pid"`
	Exited bool   `json:"exited,omitempty"`
	// Reason says why the exit status of one that exited is not known.
	Reason string `json:"reason,omitempty"`
}

// Kinds of errors.
const (
	KindNotFound     = "not found"
	KindPrecondition = "failed precondition"
	KindInvalid      = "invalid"
	KindExhausted    = "resource exhausted"
	KindUnavailable  = "unavailable"
)

// MaxLine bounds a request and a response of one line.
const MaxLine = 1 << 20

// Names of descriptors of OpKeep and OpRestore.
const (
	FilePIDFD   = "pidfd"
	FileConsole = "console"
	FileStdin   = "stdin"
	FileStdout  = "stdout"
	FileStderr  = "stderr"
)

// Frames of OpAttach: one byte of stream, four of length, then so many bytes.
const (
	FrameStdout byte = 1
	FrameStderr byte = 2
	// FrameEnd is the last; its data is a Response in JSON.
	FrameEnd byte = 3
)

// MaxFrame bounds a frame's data.
const MaxFrame = 1 << 20

// WriteFrame writes one frame.
func WriteFrame(w io.Writer, stream byte, data []byte) error {
	head := [5]byte{stream}
	binary.BigEndian.PutUint32(head[1:], uint32(len(data)))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// ReadFrame reads one frame into buf, which it grows.
func ReadFrame(r io.Reader, buf []byte) (stream byte, data []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes is longer than %d", n, MaxFrame)
	}
	if cap(buf) < int(n) {
		buf = make([]byte, n)
	}
	data = buf[:n]
	_, err = io.ReadFull(r, data)
	return head[0], data, err
}

// Line is v as one line of JSON.
func Line(v any) ([]byte, error) {
	line, err := json.Marshal(v)
	if err == nil && len(line) >= MaxLine {
		err = fmt.Errorf("a message of %d bytes is longer than %d", len(line), MaxLine)
	}
	return append(line, '\n'), err
}
