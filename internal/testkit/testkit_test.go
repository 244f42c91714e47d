package testkit

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func TestMain(m *testing.M) { Main(m, nil) }

// The tests are alone: nothing of the host's network or processes is theirs.
func TestNamespaces(t *testing.T) {
	all, err := links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		if !strings.HasPrefix(l, "lo ") {
			t.Errorf("a link of somebody else: %s", l)
		}
	}
	if os.Getpid() == 1 || os.Getppid() != 1 {
		t.Errorf("pid %d, parent %d", os.Getpid(), os.Getppid())
	}
	if entries, err := os.ReadDir("/run"); err != nil || len(entries) != 1 {
		t.Errorf("/run is not empty: %v, %v", entries, err)
	}
}

func TestPollKeepsWhatItSawLast(t *testing.T) {
	err := Poll(t.Context(), 20*time.Millisecond, func(ctx context.Context) string {
		if ctx.Err() != nil {
			return "the deadline came"
		}
		return "not yet"
	})
	if err == nil || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("err = %v", err)
	}
	n := 0
	err = Poll(t.Context(), time.Second, func(context.Context) string {
		if n++; n < 3 {
			return "not yet"
		}
		return ""
	})
	if err != nil || n != 3 {
		t.Errorf("%d calls, %v", n, err)
	}
}

func TestParseLogIsStrict(t *testing.T) {
	const at = "2016-10-06T00:17:09.669794202Z "
	lines, err := ParseLog(at + "stdout P par\n" + at + "stderr F other\n" + at + "stdout F tial\n" + at + "stdout F \n")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("partial\n\n", Join(lines, "stdout")); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{at + "stdout F no newline", "stdout F x\n", at + "stdin F x\n", at + "stdout X x\n", "yesterday stdout F x\n"} {
		if _, err := ParseLog(bad); err == nil {
			t.Errorf("taken: %q", bad)
		}
	}
}

func TestImages(t *testing.T) {
	img, err := Image(ImageOptions{Files: map[string]string{"a/b": "x", "c/": "", "d": "->a/b"}, Blobs: []int64{1000}})
	if err != nil {
		t.Fatal(err)
	}
	again, err := Image(ImageOptions{Files: map[string]string{"a/b": "x", "c/": "", "d": "->a/b"}, Blobs: []int64{1000}})
	if err != nil || ID(again) != ID(img) {
		t.Errorf("the same options give another image: %v", err)
	}
	salted, err := Image(ImageOptions{Salt: "y"})
	if err != nil || ID(salted) == ID(img) {
		t.Errorf("salt changes nothing: %v", err)
	}
	var buf bytes.Buffer
	if err := DockerArchive(&buf, map[string]v1.Image{"x.test/a:1": img}); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("x.test/a:1")
	if err != nil {
		t.Fatal(err)
	}
	read, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }, &tag)
	if err != nil || ID(read) != ID(img) {
		t.Errorf("out of the archive: %v", err)
	}
}

func TestCgroups(t *testing.T) {
	d := &Daemon{Base: t.TempDir(), CgroupParent: cgroupPrefix + "self" + filepath.Base(t.TempDir())}
	if got := cgroups(d.CgroupParent); len(got) != 0 {
		t.Fatalf("before: %q", got)
	}
	dir := cgroupRoot + "/memory/" + d.CgroupParent + "/pod"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Skipf("no cgroup v1 memory hierarchy: %v", err)
	}
	if got := cgroups(d.CgroupParent); len(got) != 2 {
		t.Errorf("got %q", got)
	}
	if err := removeCgroups(d.CgroupParent); err != nil {
		t.Error(err)
	}
	if got := cgroups(d.CgroupParent); len(got) != 0 {
		t.Errorf("after: %q", got)
	}
}

func TestSweepTakesOnlyWhatNobodyHolds(t *testing.T) {
	held, err := os.MkdirTemp("/tmp", "berth-")
	if err != nil {
		t.Fatal(err)
	}
	mark, err := claim(held)
	if err != nil {
		t.Fatal(err)
	}
	if err := sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(held); err != nil {
		t.Errorf("a directory in use was taken: %v", err)
	}
	if err := mark.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(held); !os.IsNotExist(err) {
		t.Errorf("a directory of nobody stays: %v", err)
	}
}

// The bridge plugin's table is no trace of a pod unless it holds a rule of one.
func TestEmptyMasqueradeIsNoTrace(t *testing.T) {
	empty := strings.Split("table ip nat {\n}\n"+emptyMasquerade+"\ntable ip6 nat {\n}", "\n")
	if diff := cmp.Diff([]string{"table ip nat {", "}", "table ip6 nat {", "}"}, withoutEmptyMasquerade(empty)); diff != "" {
		t.Error(diff)
	}
	used := strings.Split(strings.Replace(emptyMasquerade, "IP outside their subnet\"\n", "IP outside their subnet\"\n\t\tip saddr 10.1.2.3 masquerade\n", 1), "\n")
	if diff := cmp.Diff(used, withoutEmptyMasquerade(used)); diff != "" {
		t.Errorf("a pod's rule is hidden: %s", diff)
	}
}
