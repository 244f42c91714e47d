// Package version says which berth this is.
//
// The linker sets the version (see the Makefile); a program built by hand says
// "unknown". The package holds no state that changes and touches nothing.
package version

import "runtime"

// version is set with -ldflags "-X berth/internal/version.version=…".
var version = "unknown"

// Name is the runtime's name, as the Version call of the CRI gives it.
const Name = "berth"

// Version is what `git describe` said of the tree that this program was built
// from, such as "v0.1.0", "v0.1.0-12-gabcdef0" or "abcdef0-dirty".
func Version() string { return version }

// String is a line for people.
func String() string {
	return Name + " " + version + " (" + runtime.Version() + ", " + runtime.GOOS + "/" + runtime.GOARCH + ")"
}
