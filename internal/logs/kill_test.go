package logs

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// reader is a daemon in a process of its own: it reads until the output ends.
func reader(dir string) {
	l, err := Open(Options{
		Dir:     filepath.Join(dir, "fifos"),
		ID:      "c1",
		LogPath: filepath.Join(dir, "0.log"),
		Log:     slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("ready")
	l.Running()
	<-l.Drained()
	os.Exit(0)
}

// writer is a container that writes 80-byte lines to a FIFO.
func writer(path string) {
	total, _ := strconv.Atoi(os.Getenv("BERTH_LOGS_BYTES"))
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	block := bytes.Repeat(append(bytes.Repeat([]byte("x"), 79), '\n'), 819)
	for total > 0 {
		n, err := w.Write(block[:min(total, len(block))])
		if err != nil {
			panic(err)
		}
		total -= n
	}
	os.Exit(0)
}

func startReader(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BERTH_LOGS_READER="+dir)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatalf("the reader did not start: %v", err)
	}
	return cmd
}

// A daemon that is killed at any moment, many times, neither loses output nor
// writes it twice.
func TestKilled(t *testing.T) {
	const kills = 25
	dir := t.TempDir()
	fifos := filepath.Join(dir, "fifos")
	if err := os.Mkdir(fifos, 0o700); err != nil {
		t.Fatal(err)
	}
	c := Config{Stdout: filepath.Join(fifos, stdout), Stderr: filepath.Join(fifos, stderr)}
	for _, path := range []string{c.Stdout, c.Stderr} {
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		// What the hold process does.
		hold, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer hold.Close()
	}
	s := startShim(t, c)
	stop, written := make(chan struct{}), make(chan int, 2)
	for stream, size := range map[string]int{stdout: 4 << 10, stderr: 100} {
		go func() { written <- numbers(s, stream, size, stop) }()
	}
	for range kills {
		cmd := startReader(t, dir)
		time.Sleep(time.Duration(rand.IntN(int(20 * time.Millisecond)))) // the point is any moment
		cmd.Process.Kill()
		cmd.Wait()
	}
	last := startReader(t, dir)
	close(stop)
	total := <-written + <-written
	s.end()
	if err := last.Wait(); err != nil {
		t.Fatal(err)
	}
	out, errs := kubelet(t, filepath.Join(dir, "0.log"))
	if got := checkNumbers(t, out) + checkNumbers(t, errs); got != total {
		t.Errorf("log has %d numbers, want %d", got, total)
	}
	t.Logf("%d lines, %d kills", total, kills)
}

// numbers writes counted lines until stop, in writes of the given size, which
// cut lines as the shim's do. It returns how many.
func numbers(s *shim, stream string, size int, stop <-chan struct{}) int {
	var b []byte
	for n := 0; ; n++ {
		select {
		case <-stop:
			s.write(stream, string(b))
			return n
		default:
		}
		b = fmt.Appendf(b, "%d\n", n)
		if len(b) > size {
			s.write(stream, string(b[:size]))
			b = append(b[:0], b[size:]...)
		}
	}
}

func checkNumbers(t *testing.T, text string) int {
	t.Helper()
	n := 0
	for line := range bytes.Lines([]byte(text)) {
		if got := string(line); got != fmt.Sprintf("%d\n", n) {
			t.Fatalf("line %q, want %d", got, n)
		}
		n++
	}
	return n
}

// Each place at which a daemon can be killed in the middle of a move.
func TestRecover(t *testing.T) {
	const data = "one\ntwo\n"
	full, _ := appendEntries(nil, []byte(data), stdout, testTime, false)
	for name, test := range map[string]struct {
		log   string // beside what was there before
		taken bool
	}{
		"before writing": {"", false},
		"while writing":  {string(full[:len(full)-3]), false},
		"after writing":  {string(full), false},
		"after taking":   {string(full), true},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			l := open(t, o)
			s := startShim(t, l.Config())
			l.Running()
			s.write(stdout, "zero\n")
			within(t, "first line", func() bool { return entries(t, o.LogPath) != "" && l.idle(t) })
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if !test.taken {
				s.write(stdout, data)
			}
			forge(t, o, data, test.log, len(full))
			s.write(stdout, "three\n")
			l = open(t, o)
			l.Running()
			s.end()
			drain(t, l)
			if out, _ := kubelet(t, o.LogPath); out != "zero\none\ntwo\nthree\n" {
				t.Errorf("log %q", out)
			}
		})
	}
}

// forge makes the cursor and the log as a daemon leaves them that was killed
// while it moved data.
func forge(t *testing.T, o Options, data, added string, whole int) {
	t.Helper()
	f, err := os.OpenFile(o.LogPath, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	c, _, err := openCursor(filepath.Join(o.Dir, cursorName))
	if err != nil {
		t.Fatal(err)
	}
	defer c.f.Close()
	err = c.set(move{
		stream: 1, taken: uint32(len(data)), sum: checksum([]byte(data)),
		added: uint32(whole), dev: uint64(st.Dev), ino: st.Ino, size: st.Size,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(added); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkLines measures 80-byte lines from a process of its own into a log
// file.
func BenchmarkLines(b *testing.B) {
	o := options(b)
	l := open(b, o)
	b.SetBytes(80)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BERTH_LOGS_WRITER="+l.Config().Stdout, fmt.Sprintf("BERTH_LOGS_BYTES=%d", 80*b.N))
	b.ResetTimer()
	if err := cmd.Run(); err != nil {
		b.Fatal(err)
	}
	l.Running()
	drain(b, l)
}
