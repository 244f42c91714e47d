// Package version says which berth this is.
//
// The linker sets the version (see the Makefile); a program built by hand says
// "v0.0.0-unknown". The package holds no state that changes and touches nothing.
package version

import "runtime"

// version is a semantic one always, as a kubelet wants. It is set with -ldflags "-X berth/internal/version.version=…".
var version = "v0.0.0-unknown"

// Name is the runtime's name, as the Version call of the CRI gives it.
const Name = "berth"

// Version is what `git describe` said of the tree that this program was built
// from: "v0.1.0", "v0.1.0-12-gabcdef0", or "v0.0.0-dev+abcdef0.dirty" where no
// release is tagged.
func Version() string { return version }

// String is a line for people.
func String() string {
	return Name + " " + version + " (" + runtime.Version() + ", " + runtime.GOOS + "/" + runtime.GOARCH + ")"
}
