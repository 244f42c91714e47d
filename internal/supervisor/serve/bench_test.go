package serve_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

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

// BenchmarkLog is a container that writes lines of 80 bytes as fast as they
// are taken.
func BenchmarkLog(b *testing.B) {
	s := start(b)
	const size = 256 << 20
	b.SetBytes(size)
	n, before := 0, s.cpu()
	defer func() { b.ReportMetric(float64(n)*size/1e6/(s.cpu()-before).Seconds(), "MB/cpu-s") }()
	for b.Loop() {
		id := fmt.Sprintf("log-%d", n)
		n++
		b.StopTimer()
		line := strings.Repeat("x", 79)
		bundle := s.bundle(id, "for i in $(seq 32); do cat /text; done")
		text := filepath.Join(bundle, "rootfs/text")
		must(b, os.WriteFile(text, bytes.Repeat([]byte(line+"\n"), (8<<20)/80), 0o644))
		_, err := s.create(id, bundle, s.options(id))
		must(b, err)
		b.StartTimer()
		_, err = s.task.Start(testContext(b), &taskAPI.StartRequest{ID: id})
		must(b, err)
		s.wait(id, "")
		b.StopTimer()
		s.remove(id)
		must(b, os.Remove(filepath.Join(s.state, "logs", id+".log")))
		b.StartTimer()
	}
}

// cpu is what the supervisor has used of the processors.
func (s *supervisor) cpu() time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	must(s.t, err)
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	var ticks int
	for _, field := range fields[14-3 : 16-3] {
		n, err := strconv.Atoi(field)
		must(s.t, err)
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100
}
