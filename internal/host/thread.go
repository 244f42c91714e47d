package host

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// onThread runs fn on a thread of its own. Where fn reports that the thread is
// as it was, the thread is given back; else it ends, and with it whatever fn
// did to it.
func onThread(fn func() (restored bool, err error)) error {
	type outcome struct {
		err      error
		panicked any
	}
	done := make(chan outcome, 1)
	go func() {
		result := outcome{err: fmt.Errorf("the function on the thread ended its goroutine")}
		defer func() {
			if p := recover(); p != nil {
				result.panicked = fmt.Sprintf("%v\n\n%s", p, debug.Stack())
			}
			done <- result
		}()
		runtime.LockOSThread() // a goroutine that ends locked takes its thread along
		if unix.Gettid() == unix.Getpid() {
			// The main thread outlives its goroutine. While this goroutine
			// holds it, the next one cannot get it.
			result.err = onThread(fn)
			runtime.UnlockOSThread()
			return
		}
		restored, err := fn()
		if restored {
			runtime.UnlockOSThread()
		}
		result.err = err
	}()
	result := <-done
	if result.panicked != nil {
		panic(result.panicked)
	}
	return result.err
}

// onOwnThread runs fn on a thread that ends with it.
func onOwnThread(fn func() error) error {
	return onThread(func() (bool, error) { return false, fn() })
}
