// Package entry is how the supervisor's program becomes the init of a
// container or of an executed command: started with the argument "init", it
// goes no further than this package.
//
// Invariants:
//   - Go initializes packages in the order of their import paths, as soon as
//     what they import is. This one imports libcontainer and nothing of the
//     supervisor, so most of what only the supervisor needs, protobuf and the
//     Task API first of all, is not initialized in an init.
//   - The supervisor's main imports it.
//
// Concurrency: everything happens before main, in the first goroutine.
package entry

import (
	"os"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // enters namespaces before the Go runtime starts
)

func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init() // does not return
	}
}
