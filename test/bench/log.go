package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

const lineBytes = 80

// logs1 has a container write lines as fast as it can, one server after the
// other, and waits until the last one is in the log file.
func (b *bench) logs1(ctx context.Context) error {
	return b.alternate(ctx, b.plan.logs, func(s *server) error {
		if err := b.settle(); err != nil {
			return err
		}
		err := b.log(ctx, s)
		if err != nil && ctx.Err() == nil {
			b.results.fail(s.name, keyLogRate, err)
		}
		return nil
	})
}

func (b *bench) log(ctx context.Context, s *server) (err error) {
	dir := filepath.Join(s.dir, "go")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := unix.Mkfifo(dir+"/go", 0o666); err != nil {
		return fmt.Errorf("mkfifo: %w", err)
	}
	size := b.plan.logMiB * mebibyte / lineBytes * lineBytes
	mount := func(c *cri.ContainerConfig) {
		c.Mounts = append(c.Mounts, &cri.Mount{ContainerPath: "/go", HostPath: dir})
	}
	return b.with(ctx, s, []string{"lines", strconv.Itoa(size), "/go/go"}, func(p *pod) error {
		return b.logOf(ctx, p, dir+"/go", size)
	}, mount)
}

// logOf lets the workload go, waits for its last line and counts all of them.
func (b *bench) logOf(ctx context.Context, p *pod, fifo string, size int) (err error) {
	file, err := os.Open(filepath.Join(p.sandbox.LogDirectory, p.config.LogPath))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	before, err := p.s.cpu(false)
	if err != nil {
		return err
	}
	if err := letGo(ctx, fifo); err != nil {
		return err
	}
	began := time.Now()
	if err := waitForEnd(ctx, file); err != nil {
		return err
	}
	took := time.Since(began)
	if err := countLines(file, size/lineBytes); err != nil {
		return err
	}
	after, err := p.s.cpu(false)
	if err != nil {
		return err
	}
	mib := float64(size) / mebibyte
	b.results.add(p.s.name, keyLogRate, mib/took.Seconds())
	b.results.add(p.s.name, keyLogCPU, milliseconds(after-before)/mib)
	return nil
}

// letGo writes one byte to the FIFO as soon as the workload reads it.
func letGo(ctx context.Context, fifo string) error {
	return testkit.Poll(ctx, startTimeout, func(context.Context) string {
		fd, err := unix.Open(fifo, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			_, err = unix.Write(fd, []byte{'\n'})
			err = errors.Join(err, unix.Close(fd))
		}
		if err != nil {
			return fmt.Sprintf("the workload does not wait at %s: %v", fifo, err)
		}
		return ""
	})
}

// waitForEnd looks at the end of the file each millisecond: little enough to
// leave the processors to what is measured.
func waitForEnd(ctx context.Context, file *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	last := make([]byte, 160)
	for {
		info, err := file.Stat()
		if err != nil {
			return err
		}
		n, err := file.ReadAt(last, max(0, info.Size()-int64(len(last))))
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if text := last[:n]; bytes.HasSuffix(text, []byte(".\n")) && bytes.Contains(text, []byte(" F end.")) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the last line is not in the log, which has %d bytes: %w", info.Size(), context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

func countLines(file *os.File, want int) error {
	have, buf := 0, make([]byte, mebibyte)
	for at := int64(0); ; {
		n, err := file.ReadAt(buf, at)
		have += bytes.Count(buf[:n], []byte{'\n'})
		at += int64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if have != want {
		return fmt.Errorf("the log has %d lines, want %d", have, want)
	}
	return nil
}
