package podinit

import (
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// Reap is the second stage. It returns when it was told to end.
func Reap() error {
	if os.Getpid() != 1 {
		return fmt.Errorf("%s is started by berth, as PID 1 of a PID namespace", Name)
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT)
	// Processes of the same user are not to look into this one.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	if err := greet(); err != nil {
		return err
	}
	debug.FreeOSMemory()
	for {
		for reapOne() {
		}
		if s := <-signals; s != unix.SIGCHLD {
			return nil // and with PID 1 the kernel ends all the others
		}
	}
}

// greet tells whoever started this that it is ready, and returns when that one
// has done its part. No descriptor stays open.
func greet() error {
	if _, err := unix.Write(socket, []byte(Ready)); err != nil {
		return fmt.Errorf("say that pod-init is ready: %w", err)
	}
	var b [1]byte
	for {
		n, err := unix.Read(socket, b[:])
		if err == unix.EINTR {
			continue
		}
		if n != 1 {
			return fmt.Errorf("whoever started pod-init is gone: %v", err)
		}
		return unix.CloseRange(0, socket, 0)
	}
}

// reapOne says whether there was one that had ended.
func reapOne() bool {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		return err == nil && pid > 0
	}
}
