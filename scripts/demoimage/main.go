// Command demoimage writes the demo's image, as no registry needs to be
// reachable: this machine's busybox with its web server, as an OCI archive.
//
//	demoimage FILE REFERENCE
//
// It runs once and holds no state.
package main

import (
	"errors"
	"fmt"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"berth/internal/testkit"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: demoimage FILE REFERENCE")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "demoimage:", err)
		os.Exit(1)
	}
}

func write(file, reference string) (err error) {
	img, err := testkit.Image(testkit.ImageOptions{
		Cmd:    []string{"sh"},
		Labels: map[string]string{"org.opencontainers.image.title": "berth's demo: busybox"},
	})
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return testkit.OCIArchive(f, map[string]v1.Image{reference: img})
}
