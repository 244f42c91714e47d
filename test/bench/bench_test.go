package main

import (
	"compress/gzip"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write golden files")

func TestQuantiles(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[99-i] = float64(i + 1)
	}
	for _, test := range []struct {
		name               string
		samples            []float64
		median, less, more float64
	}{
		{"none", nil, math.NaN(), math.NaN(), math.NaN()},
		{"one", []float64{7}, 7, 7, 7},
		{"two", []float64{4, 2}, 3, 4, 2},
		{"three", []float64{9, 1, 2}, 2, 9, 1},
		{"hundred", hundred, 50.5, 95, 6},
	} {
		got := []float64{median(test.samples), figure{}.p95(test.samples), figure{more: true}.p95(test.samples)}
		want := []float64{test.median, test.less, test.more}
		for i := range got {
			if got[i] != want[i] && !(math.IsNaN(got[i]) && math.IsNaN(want[i])) {
				t.Errorf("%s: got %v, want %v", test.name, got, want)
				break
			}
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 4: "4", 12345: "12345", 0.0123: "0.012", 0.5: "0.50", 1.234: "1.23", 12.34: "12.3", 123.4: "123",
		math.Inf(1): "∞", math.NaN(): "—",
	} {
		if got := number(v); got != want {
			t.Errorf("%v: got %q, want %q", v, got, want)
		}
	}
}

// filled is a table with every kind of cell.
func filled() (*results, []figure) {
	figures := []figure{
		{key: "a", title: "first", unit: "ms", target: 30},
		{key: "b", title: "second, a rate", unit: "/s", more: true, target: 30},
		{key: "c", title: "not measured", unit: "ms"},
		{key: "d", title: "a count", target: 4},
		{key: "e", title: "only ours", unit: "ms"},
		{key: "f", title: "within the target but for a failure", unit: "ms", target: 5},
	}
	r := newResults()
	for _, v := range []float64{20, 10, 30} {
		r.add(nameBerth, "a", v)
		r.add(namePeer, "a", 10*v)
		r.add(nameBerth, "b", v)
		r.add(namePeer, "b", 2*v)
	}
	r.add(nameBerth, "d", 0)
	r.add(namePeer, "d", 46)
	r.add(nameBerth, "e", 0.25)
	r.add(nameBerth, "f", 1)
	r.fail(nameBerth, "f", errors.New("the first\nin two lines"))
	r.fail(nameBerth, "f", errors.New("the second"))
	r.fail(namePeer, "f", errors.New("theirs"))
	return r, figures
}

func TestText(t *testing.T) {
	r, figures := filled()
	var b strings.Builder
	if err := r.text(&b, figures); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/table.txt", b.String())
}

func TestMarkdown(t *testing.T) {
	r, figures := filled()
	var b strings.Builder
	if err := r.markdown(&b, figures, []string{"date: today", "kernel: this"}); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/table.md", b.String())
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func TestCountCalls(t *testing.T) {
	// As strace -f -o writes it.
	const text = `101   execve("/x/runc", ["runc", "create"], 0xc000 /* 9 vars */) = 0
101   execve("/none", ["none"], 0xc000 /* 9 vars */) = -1 ENOENT (No such file or directory)
102   fsync(7)                          = 0
103   fdatasync(9 <unfinished ...>
102   fdatasync(8)                      = 0
103   <... fdatasync resumed>)          = 0
104   fsync(5)                          = -1 EINVAL (Invalid argument)
105   execve("/bin/work", ["/bin/work", "idle"], 0xc000 /* 3 vars */) = 0
106   execve("/bin/work", ["/bin/work", "idle"], 0xc000 /* 3 vars */ <unfinished ...>
106   <... execve resumed>)             = 0
107   execve("/bin/pause", ["/bin/pause"], 0xc000 /* 3 vars */ <unfinished ...>
107   <... execve resumed>)             = 0
109   execve("/proc/self/fd/6", ["runc", "init"], 0xc000 /* 3 vars */ <unfinished ...>
108   +++ superseded by execve in pid 109 +++
108   <... execve resumed>)             = 0
110   execveat(5, "", ["runc"], 0xc000 /* 3 vars */, AT_EMPTY_PATH) = 0
110   +++ exited with 0 +++
`
	got, err := countCalls(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if want := (counts{syncs: 3, execs: 4}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// Every group's keys are figures, and every figure belongs to one group.
func TestGroupsAndFigures(t *testing.T) {
	for _, p := range []plan{quickPlan(), fullPlan(), fullPlan().scaled(0.01)} {
		b := &bench{plan: p}
		measured := map[string]int{}
		for _, g := range b.groups() {
			for _, key := range g.keys {
				measured[key]++
			}
		}
		for _, f := range allFigures(p.held) {
			if measured[f.key] != 1 {
				t.Errorf("%s is measured by %d groups", f.key, measured[f.key])
			}
			delete(measured, f.key)
		}
		for key := range measured {
			t.Errorf("%s is no figure", key)
		}
	}
}

func TestParse(t *testing.T) {
	for _, test := range []struct {
		args []string
		err  string
	}{
		{[]string{"-quick", "-only", "^pod", "-servers", "berth"}, ""},
		{[]string{"-only", "("}, "-only"},
		{[]string{"-servers", "crio"}, `no server "crio"`},
		{[]string{"all"}, `unexpected argument "all"`},
	} {
		o, err := parse(test.args)
		if test.err == "" {
			if err != nil || !o.quick || !o.only.MatchString(keyReady) || len(o.servers) != 1 || o.bin == "" {
				t.Errorf("%q: %+v, %v", test.args, o, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), test.err) {
			t.Errorf("%q: %v, want %q", test.args, err, test.err)
		}
	}
}

// An image of files is what a registry takes; text compresses as text, noise
// not at all.
func TestImages(t *testing.T) {
	img, err := filesImage(3, 10)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers: %v", len(layers), err)
	}
	if n := len(prose(3, 1000)); n != 1000 {
		t.Errorf("prose of %d bytes", n)
	}
	for name, test := range map[string]struct {
		text     []byte
		min, max float64
	}{"prose": {prose(1, mebibyte), 2, 4}, "noise": {noise(1, mebibyte), 0.99, 1.01}} {
		var w counter
		z, err := gzip.NewWriterLevel(&w, gzip.BestSpeed)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write(test.text); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		if ratio := float64(len(test.text)) / float64(w); ratio < test.min || ratio > test.max {
			t.Errorf("%s compresses %.2f to one", name, ratio)
		}
	}
}

type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

var (
	_ v1.Layer  = (*gzipped)(nil)
	_ io.Writer = (*counter)(nil)
)
