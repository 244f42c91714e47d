package testkit

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// A LogLine is one line of a log file.
type LogLine struct {
	Time    time.Time
	Stream  string
	Partial bool
	Text    string
}

// ReadLog reads a log file strictly.
func ReadLog(file string) ([]LogLine, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return ParseLog(string(text))
}

// ParseLog reads the CRI's log format strictly.
func ParseLog(text string) ([]LogLine, error) {
	var lines []LogLine
	for line := range strings.Lines(text) {
		body, whole := strings.CutSuffix(line, "\n")
		parts := strings.SplitN(body, " ", 4)
		if !whole || len(parts) != 4 {
			return lines, fmt.Errorf("line %d of the log is broken: %.100q", len(lines)+1, line)
		}
		at, err := time.Parse(time.RFC3339Nano, parts[0])
		if err != nil {
			return lines, fmt.Errorf("line %d of the log: %w", len(lines)+1, err)
		}
		if parts[1] != "stdout" && parts[1] != "stderr" || parts[2] != "F" && parts[2] != "P" {
			return lines, fmt.Errorf("line %d of the log: stream %q, tag %q", len(lines)+1, parts[1], parts[2])
		}
		lines = append(lines, LogLine{at, parts[1], parts[2] == "P", parts[3]})
	}
	return lines, nil
}

// Join puts a log's text together again; stream "" is both.
func Join(lines []LogLine, stream string) string {
	var b strings.Builder
	for _, l := range lines {
		if stream != "" && l.Stream != stream {
			continue
		}
		b.WriteString(l.Text)
		if !l.Partial {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// Text is what the container wrote to its log so far.
func (c *Container) Text(t testing.TB) string {
	t.Helper()
	lines, err := ReadLog(c.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	return Join(lines, "")
}

// Logged waits until the log holds text.
func (c *Container) Logged(t testing.TB, text string) {
	t.Helper()
	Until(t, 15*time.Second, func(context.Context) string {
		have, err := os.ReadFile(c.LogFile())
		if err != nil {
			return err.Error()
		}
		if !strings.Contains(string(have), text) {
			return fmt.Sprintf("no %q in the log: %.500q", text, have)
		}
		return ""
	})
}
