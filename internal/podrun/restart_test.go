package podrun

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/manifest"
)

func TestLastLines(t *testing.T) {
	line := func(text string) string { return "2026-01-02T03:04:05.000000006Z stdout F " + text + "\n" }
	for _, test := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"none", nil, "  (empty)"},
		{"the last attempt", map[string]string{"9.log": line("nine"), "10.log": line("ten"), "10.log.1": line("old"), "x.log": line("x")}, "  ten"},
		{"five lines", map[string]string{"0.log": line("1") + line("2") + line("3") + line("4") + line("5") + line("6")}, "  2\n  3\n  4\n  5\n  6"},
		{"a long log", map[string]string{"0.log": strings.Repeat(line(strings.Repeat("x", 1000)), 200) + line("end")}, strings.Repeat("  "+strings.Repeat("x", 1000)+"\n", 4) + "  end"},
		{"a long line", map[string]string{"0.log": line(strings.Repeat("x", 2*maxTail))}, "  " + strings.Repeat("x", maxTail-1)},
	} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "c"), 0o700); err != nil {
			t.Fatal(err)
		}
		for name, text := range test.files {
			if err := os.WriteFile(filepath.Join(dir, "c", name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r := &Run{plan: &manifest.Plan{LogDir: dir}}
		if got := r.lastLines(&manifest.Container{Name: "c"}); got != test.want {
			t.Errorf("%s: %d bytes %.80q, want %d bytes %.80q", test.name, len(got), got, len(test.want), test.want)
		}
	}
}
