// Package logs carries a container's stdio: out of its FIFOs into the log file
// that the kubelet reads and to the clients attached to it, and from those
// clients into its stdin.
//
// Invariants:
//   - Output is taken out of a FIFO only after it stands in the log file. It is
//     looked at with tee(2), written, and then discarded, so a daemon that is
//     killed at any point loses none of it. A small file beside the FIFOs, the
//     cursor, says which batch was being moved; Open uses it to finish the move
//     exactly once (FORMAT.md). What the FIFO holds outlives the daemon as long
//     as someone has the FIFO open: the shim while the container writes, the
//     hold process (internal/supervisor) after that.
//   - An entry of the log file is never torn by another one: stdout and stderr
//     of a container are written under one lock, whole entries at a time.
//   - A container is never made to wait for a log file that cannot be written
//     or for a client that does not read: what the file does not take is
//     dropped and counted, a client that falls behind is dropped.
//
// Concurrency: an IO is safe for concurrent use. It runs one goroutine for
// each of stdout and stderr, which end at end of file or with Close, and for
// each attached client two that end when its streams do.
package logs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
)

// Names of the FIFOs in Options.Dir; stdout and stderr also name the stream in
// the log file.
const (
	stdin  = "stdin"
	stdout = "stdout"
	stderr = "stderr"
)

// Options describe a container's stdio.
type Options struct {
	// Dir is the directory of the FIFOs; required. It is made where missing.
	Dir string
	// ID is the container's, for messages; required.
	ID string
	// Stdin gives the container a standard input that clients write to.
	Stdin bool
	// StdinOnce closes it when the first client's input ends.
	StdinOnce bool
	// TTY gives the container a terminal: all its output is on stdout.
	TTY bool
	// LogPath is the log file; "" for none. Its directory is made where
	// missing.
	LogPath string
	// Lost, where set, is told of bytes of log entries that the log file did
	// not take. It returns at once.
	Lost func(bytes int)
	// Log is required.
	Log *slog.Logger
}

// Config names the FIFOs as containerd wants them. It converts to cio.Config:
// the task's cio.Creator returns cio.Load(cio.NewFIFOSet(cio.Config(c), nil)),
// which opens and removes nothing.
type Config struct {
	Terminal bool
	Stdin    string
	Stdout   string
	Stderr   string
}

// An IO is the daemon's end of one container's stdio.
type IO struct {
	opts    Options
	file    *logFile
	pumps   []*pump
	clients clients
	drained chan struct{}
	wg      sync.WaitGroup // the pumps

	input *Stdin

	mu      sync.Mutex // guards what follows
	keepers []*os.File // write ends of our own, until Running
	running int        // pumps that have not ended
	cut     bool       // one of them ended before the end of output
	err     error

	closed atomic.Bool // set under mu
}

// Open makes the FIFOs where they are missing, opens their read ends and the
// log file, finishes what an earlier daemon was killed at, and starts to carry
// output. It works before the task exists and again after a restart of the
// daemon. Of one container there is at most one IO at a time.
//
// A log file that cannot be opened is an error for a new container; for one
// whose FIFOs were there already it is logged and tried again while output
// comes, so that a running container is not made to wait.
func Open(o Options) (*IO, error) {
	l := &IO{opts: o, drained: make(chan struct{}), input: NewStdin(o)}
	if err := l.open(); err != nil {
		l.release()
		return nil, fmt.Errorf("stdio of container %s: %w", o.ID, err)
	}
	l.running = len(l.pumps)
	for _, p := range l.pumps {
		l.wg.Add(1)
		go p.run()
	}
	return l, nil
}

func (l *IO) open() error {
	o := l.opts
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	fresh := false
	for _, name := range l.names() {
		made, err := makeFIFO(filepath.Join(o.Dir, name))
		if err != nil {
			return err
		}
		fresh = fresh || made
	}
	for _, name := range l.outputs() {
		p := &pump{io: l, stream: name, path: filepath.Join(o.Dir, name)}
		l.pumps = append(l.pumps, p)
		keeper, err := p.open()
		if err != nil {
			return err
		}
		l.keepers = append(l.keepers, keeper)
	}
	file, err := openLog(o, fresh)
	if err != nil {
		return err
	}
	l.file = file
	return file.recover(l.pumps)
}

// release closes what a failed Open leaves.
func (l *IO) release() {
	for _, k := range l.keepers {
		k.Close()
	}
	for _, p := range l.pumps {
		p.close()
	}
	if l.file != nil {
		l.file.close()
	}
}

func (l *IO) outputs() []string {
	if l.opts.TTY {
		return []string{stdout}
	}
	return []string{stdout, stderr}
}

func (l *IO) names() []string {
	if l.opts.Stdin {
		return append(l.outputs(), stdin)
	}
	return l.outputs()
}

// Config names the FIFOs for the task.
func (o Options) Config() Config {
	c := Config{Terminal: o.TTY, Stdout: filepath.Join(o.Dir, stdout)}
	if o.Stdin {
		c.Stdin = filepath.Join(o.Dir, stdin)
	}
	if !o.TTY {
		c.Stderr = filepath.Join(o.Dir, stderr)
	}
	return c
}

// Config names the FIFOs for the task.
func (l *IO) Config() Config { return l.opts.Config() }

// Outputs are the paths of the FIFOs that carry output: those that the hold
// process keeps open.
func (l *IO) Outputs() []string {
	var paths []string
	for _, p := range l.pumps {
		paths = append(paths, p.path)
	}
	return paths
}

// Running says that the shim has opened its ends, or is gone: from now on end
// of file is the end of output. Until then write ends of our own keep the
// FIFOs open. It may be called again.
func (l *IO) Running() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closeKeepersLocked()
}

func (l *IO) closeKeepersLocked() {
	for _, k := range l.keepers {
		l.err = errors.Join(l.err, k.Close())
	}
	l.keepers = nil
}

// Reopen opens the log file by its path again, after the kubelet renamed it.
// The old file gets nothing more when Reopen has returned. If the new one
// cannot be opened, output goes on into the old one.
//
// Errors: ErrFailedPrecondition where the container's output has ended.
func (l *IO) Reopen() error {
	if err := l.file.reopen(); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", l.opts.ID, err)
	}
	return nil
}

// Drained is closed when the output has ended and all of it stands in the log
// file, and when the IO is closed.
func (l *IO) Drained() <-chan struct{} { return l.drained }

// ended is called by each pump as its last act. complete says that it met the
// end of output.
func (l *IO) ended(complete bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = l.cut || !complete
	if l.running--; l.running > 0 {
		return
	}
	l.err = errors.Join(l.err, l.file.close())
	var reason error
	if l.cut {
		reason = fmt.Errorf("attach to container %s: its stdio was closed: %w", l.opts.ID, errdefs.ErrUnavailable)
	}
	l.clients.end(reason)
	close(l.drained)
}

// Close ends the carrying of output, which stays in the FIFOs for the next
// Open, and waits for the goroutines that do it. It removes nothing. Closing
// twice is safe.
func (l *IO) Close() error {
	l.mu.Lock()
	if !l.closed.Swap(true) {
		l.closeKeepersLocked()
		for _, p := range l.pumps {
			l.err = errors.Join(l.err, p.close())
		}
	}
	l.mu.Unlock()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return fmt.Errorf("close stdio of container %s: %w", l.opts.ID, l.err)
	}
	return nil
}

// warn logs with the container's ID.
func (l *IO) warn(msg string, args ...any) {
	l.opts.Log.Log(context.Background(), slog.LevelWarn, msg, append([]any{"container", l.opts.ID}, args...)...)
}
