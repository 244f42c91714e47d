package steps

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Environment variables that the test suites set; both are off by default.
const (
	// FailpointsEnv lists failpoints, separated by commas:
	//
	//	OP/STEP[:after]=error|panic|kill|delay:DURATION
	//
	// Each acts once. Without ":after" it acts before the step's Do.
	FailpointsEnv = "BERTH_FAILPOINTS"
	// TraceEnv names a file to which each step is appended as it is begun
	// ("OP/STEP\n"), so that a suite learns the steps there are.
	TraceEnv = "BERTH_STEPS_TRACE"
)

type moment string

const (
	before moment = ""
	after  moment = ":after"
)

// Failpoints make named steps fail on purpose, once each. A nil *Failpoints
// does nothing.
type Failpoints struct {
	trace *os.File

	mu sync.Mutex // guards armed
	// armed maps OP/STEP or OP/STEP:after to what happens there.
	armed map[string]action
}

type action struct {
	kind  string
	delay time.Duration
}

// ErrFailpoint is what a step fails with at a failpoint set to "error".
var ErrFailpoint = fmt.Errorf("failpoint")

// FailpointsFromEnv reads FailpointsEnv and TraceEnv; it returns nil when
// neither is set.
func FailpointsFromEnv() (*Failpoints, error) {
	list, trace := os.Getenv(FailpointsEnv), os.Getenv(TraceEnv)
	if list == "" && trace == "" {
		return nil, nil
	}
	f, err := ParseFailpoints(list)
	if err != nil || trace == "" {
		return f, err
	}
	f.trace, err = os.OpenFile(trace, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	return f, err
}

// ParseFailpoints reads the list that FailpointsEnv holds.
func ParseFailpoints(list string) (*Failpoints, error) {
	f := &Failpoints{armed: map[string]action{}}
	for point := range strings.SplitSeq(list, ",") {
		if point == "" {
			continue
		}
		name, what, ok := strings.Cut(point, "=")
		if !ok || !strings.Contains(name, "/") {
			return nil, fmt.Errorf("%s: %q is not OP/STEP[:after]=ACTION", FailpointsEnv, point)
		}
		kind, arg, _ := strings.Cut(what, ":")
		act := action{kind: kind}
		switch kind {
		case "error", "panic", "kill":
		case "delay":
			d, err := time.ParseDuration(arg)
			if err != nil {
				return nil, fmt.Errorf("%s: %q: %w", FailpointsEnv, point, err)
			}
			act.delay = d
		default:
			return nil, fmt.Errorf("%s: %q: unknown action %q; use error, panic, kill or delay:DURATION", FailpointsEnv, point, kind)
		}
		f.armed[name] = act
	}
	return f, nil
}

func (f *Failpoints) hit(ctx context.Context, op, step string, when moment) error {
	if f == nil {
		return nil
	}
	name := op + "/" + step
	if f.trace != nil && when == before {
		if _, err := f.trace.WriteString(name + "\n"); err != nil {
			return fmt.Errorf("trace of steps: %w", err)
		}
	}
	f.mu.Lock()
	act, ok := f.armed[name+string(when)]
	delete(f.armed, name+string(when))
	f.mu.Unlock()
	if !ok {
		return nil
	}
	switch act.kind {
	case "panic":
		panic("failpoint " + name)
	case "kill":
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			return err
		}
		select {} // the signal ends the process
	case "delay":
		select {
		case <-time.After(act.delay):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fmt.Errorf("%w %s%s", ErrFailpoint, name, when)
}
