// Package examples holds manifests to try; its test keeps them right.
package examples

import (
	"os"
	"path/filepath"
	"testing"

	"berth/internal/manifest"
)

func TestManifests(t *testing.T) {
	files, err := filepath.Glob("*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("no example is here")
	}
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := manifest.Read(f); err != nil {
				t.Error(err)
			}
		})
	}
}
