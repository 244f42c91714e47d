package container

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the supervisor and runc say, as recorded.
func TestExplain(t *testing.T) {
	const (
		supervisor = "failed to create shim task: unable to start container process: error during container init: "
		runc       = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: error during container init: "
	)
	for said, want := range map[string]string{
		supervisor + `exec: "no-such": executable file not found in $PATH`: `exec: "no-such": executable file not found in $PATH: the image has no such program: check the container's command and args`,
		runc + `exec: "/no": stat /no: no such file or directory`:          `exec: "/no": stat /no: no such file or directory: the image has no such program: check the container's command and args`,
		supervisor + `exec: "/etc/passwd": permission denied`:              `exec: "/etc/passwd": permission denied: it is no program that the container's user may execute: check its mode and the user`,
		supervisor + `mkdir /etc/passwd: not a directory`:                  `mkdir /etc/passwd: not a directory: check the container's working directory`,
		supervisor + `error mounting "/pods/x" to rootfs at "/etc/passwd": mount src=/pods/x, dst=/etc/passwd, dstFd=/proc/thread-self/fd/15, flags=MS_BIND|MS_REC: not a directory`://
		`error mounting "/pods/x" to rootfs at "/etc/passwd": not a directory: a directory can be mounted over a directory only, and a file over a file`,
		"failed to create shim task: unable to start container process: container init was OOM-killed (memory limit too low?)": "container init was OOM-killed (memory limit too low?)",
		"something else: not a directory": "something else: not a directory",
	} {
		if got := (&startError{errors.New(said)}).Error(); got != want {
			t.Error(cmp.Diff(want, got))
		}
	}
}
