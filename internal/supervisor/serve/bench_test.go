package serve_test

import (
	"fmt"
	"testing"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
)

// BenchmarkLife is a container's whole life.
func BenchmarkLife(b *testing.B) {
	s := start(b)
	n := 0
	for b.Loop() {
		id := fmt.Sprintf("life-%d", n)
		n++
		b.StopTimer()
		bundle := s.bundle(id, "exit 0")
		b.StartTimer()
		if _, err := s.create(id, bundle, s.options(id)); err != nil {
			b.Fatal(err)
		}
		if _, err := s.task.Start(testContext(b), &taskAPI.StartRequest{ID: id}); err != nil {
			b.Fatal(err)
		}
		s.wait(id, "")
		s.remove(id)
	}
}

// BenchmarkExec is one command in a container that runs.
func BenchmarkExec(b *testing.B) {
	s := start(b)
	s.launch("box", "while true; do sleep 1000; done")
	n := 0
	for b.Loop() {
		n++
		s.exec("box", fmt.Sprintf("e%d", n), "true", "")
	}
	s.killAndRemove("box")
}
