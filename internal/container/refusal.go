package container

import (
	"context"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

// A startError is the runtime's refusal to start what the container asks for;
// starting it again would end the same.
type startError struct{ err error }

func (e *startError) Error() string { return explain(e.err.Error()) }
func (e *startError) Unwrap() error { return e.err }

// refusal marks the runtime's refusal of the container.
func refusal(ctx context.Context, err error) error {
	if refused(ctx, err) {
		return &startError{err}
	}
	return err
}

// refused tells the runtime's answer from a call that did not get one.
func refused(ctx context.Context, err error) bool {
	return err != nil && ctx.Err() == nil && !isCut(err) && !errdefs.IsUnavailable(err) && !errdefs.IsDeadlineExceeded(err) &&
		!errdefs.IsCanceled(err) && !errdefs.IsAlreadyExists(err)
}

// layers are what containerd and runc put before the reason of a refusal.
var layers = []string{
	"failed to create shim task: ", "OCI runtime create failed: ", "runc create failed: ",
	"unable to start container process: ", "error during container init: ",
}

// mountCall is how runc tells of a mount after having named both its ends.
var mountCall = regexp.MustCompile(`: mount src=.*, flags=[^:]*: `)

// ways out of refusals that users meet, by their text.
var ways = []struct {
	refusal *regexp.Regexp
	way     string
}{
	{regexp.MustCompile(`^exec: .*(not found in \$PATH|no such file or directory)$`), "the image has no such program: check the container's command and args"},
	{regexp.MustCompile(`^exec: .*permission denied$`), "it is no program that the container's user may execute: check its mode and the user"},
	{regexp.MustCompile(`^exec: .*is a directory$`), "check the container's command and args"},
	{regexp.MustCompile(`^mkdir .*: not a directory$|^(chdir to cwd|mkdir) `), "check the container's working directory"},
	{regexp.MustCompile(`^error mounting .*: not a directory$`), "a directory can be mounted over a directory only, and a file over a file"},
	{regexp.MustCompile(`^error mounting .* to rootfs at "/proc`), "nothing can be mounted below /proc"},
}

// explain makes of a runtime's refusal what the user of a pod is told: without
// the layers that it came through, and with what to do where that is known.
func explain(refusal string) string {
	for _, l := range layers {
		refusal = strings.TrimPrefix(refusal, l)
	}
	refusal = mountCall.ReplaceAllLiteralString(refusal, ": ")
	for _, w := range ways {
		if w.refusal.MatchString(refusal) {
			return refusal + ": " + w.way
		}
	}
	return refusal
}
