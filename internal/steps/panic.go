package steps

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
)

// Guard runs work and turns a panic in it into an error of one line, which may
// reach a client; the stack goes to the log with args.
func Guard(log *slog.Logger, work func() error, args ...any) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %s; the log has the stack; this is a bug in berth, please report it", firstLine(p))
			log.Error("panic; the daemon goes on", append(args, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))...)
		}
	}()
	return work()
}

func firstLine(p any) string {
	line, _, _ := strings.Cut(fmt.Sprint(p), "\n")
	return line
}
