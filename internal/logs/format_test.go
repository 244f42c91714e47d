package logs

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var testTime = time.Date(2016, 10, 6, 0, 17, 9, 600, time.FixedZone("", 7200))

func TestAppendEntries(t *testing.T) {
	const head = "2016-10-05T22:17:09.000000600Z stdout "
	full, over := strings.Repeat("x", maxLine), strings.Repeat("y", 10)
	for name, test := range map[string]struct {
		data  string
		flush bool
		want  []string // entries without timestamp and stream
		took  int
	}{
		"nothing":           {},
		"nothing, flushed":  {flush: true},
		"lines":             {data: "a\nbc\n", want: []string{"F a", "F bc"}, took: 5},
		"empty lines":       {data: "\n\n", want: []string{"F ", "F "}, took: 2},
		"carriage return":   {data: "a\r\n", want: []string{"F a\r"}, took: 3},
		"fragment waits":    {data: "a\nbc", want: []string{"F a"}, took: 2},
		"fragment flushed":  {data: "a\nbc", flush: true, want: []string{"F a", "P bc"}, took: 4},
		"longest line":      {data: full + "\n", want: []string{"F " + full}, took: maxLine + 1},
		"longest fragment":  {data: full},
		"too long":          {data: full + over + "\n", want: []string{"P " + full, "F " + over}, took: maxLine + 11},
		"too long fragment": {data: full + over, want: []string{"P " + full}, took: maxLine},
		"twice too long":    {data: full + full + "\n", want: []string{"P " + full, "F " + full}, took: 2*maxLine + 1},
	} {
		t.Run(name, func(t *testing.T) {
			var want string
			for _, w := range test.want {
				want += head + w + "\n"
			}
			got, took := appendEntries(nil, []byte(test.data), stdout, testTime, test.flush)
			if diff := cmp.Diff(want, string(got)); diff != "" || took != test.took {
				t.Errorf("took %d, want %d; entries (-want +got):\n%s", took, test.took, diff)
			}
		})
	}
}

// FuzzAppendEntries cuts data where reads might and checks that the entries
// carry it all.
func FuzzAppendEntries(f *testing.F) {
	f.Add([]byte("a\nbc\n\r\nd"), 3, true)
	f.Add(bytes.Repeat([]byte("long"), 5000), 16385, false)
	f.Fuzz(func(t *testing.T, data []byte, step int, flush bool) {
		if step > 0 {
			step = max(step, len(data)/100) // the test is quadratic in the steps
		}
		var out, back []byte
		rest := data
		for at := 0; at < len(rest); {
			end := len(rest)
			if step > 0 {
				end = min(end, at+step)
			}
			last := end == len(rest)
			var took int
			out, took = appendEntries(out[:0], rest[:end], stderr, testTime, last && flush)
			if keep := end - took; keep > maxLine {
				t.Fatalf("a fragment of %d bytes stays", keep)
			}
			back = append(back, content(t, out)...)
			rest, at = rest[took:], end-took
		}
		if flush && len(rest) > 0 {
			t.Fatalf("%d bytes stay after a flush", len(rest))
		}
		if got := append(back, rest...); !bytes.Equal(got, data) {
			t.Fatalf("entries hold %q, want %q", got, data)
		}
	})
}

// content joins the content of whole entries, as the kubelet does.
func content(t testing.TB, entries []byte) []byte {
	t.Helper()
	var back []byte
	for line := range bytes.Lines(entries) {
		parts := bytes.SplitN(line, []byte(" "), 4)
		if len(parts) != 4 || line[len(line)-1] != '\n' {
			t.Fatalf("entry %q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, string(parts[0])); err != nil || len(parts[0]) != 30 {
			t.Fatalf("entry %q: timestamp: %v", line, err)
		}
		body := parts[3]
		switch string(parts[2]) {
		case "F":
		case "P":
			body = body[:len(body)-1]
		default:
			t.Fatalf("entry %q: tag", line)
		}
		if len(bytes.TrimSuffix(body, []byte("\n"))) > maxLine {
			t.Fatalf("entry of %d bytes", len(body))
		}
		back = append(back, body...)
	}
	return back
}
