package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// The names of the two servers, which are columns.
const (
	nameBerth = "berth"
	namePeer  = "containerd"
)

// results are what was measured. Safe for concurrent use.
type results struct {
	mu     sync.Mutex                    // guards series
	series map[string]map[string]*series // server → key → series
}

func newResults() *results { return &results{series: map[string]map[string]*series{}} }

func (r *results) of(server, key string) *series {
	if r.series[server] == nil {
		r.series[server] = map[string]*series{}
	}
	s := r.series[server][key]
	if s == nil {
		s = &series{}
		r.series[server][key] = s
	}
	return s
}

func (r *results) add(server, key string, v float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of(server, key).add(v)
}

func (r *results) fail(server, key string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of(server, key).fail(err)
}

// number is short and has three digits that count.
func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "—"
	case math.IsInf(v, 0):
		return "∞"
	case v == math.Trunc(v) && a < 1e6, a >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 0.1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

// cell is "median (p95)", and how many calls failed.
func (f figure) cell(s *series) string {
	var parts []string
	if len(s.samples) > 0 {
		parts = append(parts, fmt.Sprintf("%s (%s)", number(median(s.samples)), number(f.p95(s.samples))))
	}
	if s.failed > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d FAILED", s.failed, s.failed+len(s.samples)))
	}
	if len(parts) == 0 {
		return "—"
	}
	return strings.Join(parts, ", ")
}

// header are the columns' names.
var header = []string{"figure", "unit", nameBerth, namePeer, "ratio", "target", "met", "n"}

// row is a figure's, or nil where nothing of it was tried.
func (r *results) row(f figure) []string {
	ours, theirs := r.of(nameBerth, f.key), r.of(namePeer, f.key)
	n := max(len(ours.samples)+ours.failed, len(theirs.samples)+theirs.failed)
	if n == 0 {
		return nil
	}
	ratio, target, met := "—", "", ""
	if len(ours.samples) > 0 && len(theirs.samples) > 0 {
		ratio = number(f.better(median(ours.samples), median(theirs.samples))) + "×"
	}
	if f.target != 0 {
		sign := "≤ "
		if f.more {
			sign = "≥ "
		}
		target, met = sign+number(f.target), "no"
		if ours.failed == 0 && len(ours.samples) > 0 && f.met(median(ours.samples)) {
			met = "yes"
		}
	}
	return []string{f.title, f.unit, f.cell(ours), f.cell(theirs), ratio, target, met, strconv.Itoa(n)}
}

func (r *results) rows(figures []figure) [][]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var rows [][]string
	for _, f := range figures {
		if row := r.row(f); row != nil {
			rows = append(rows, row)
		}
	}
	return rows
}

// failures are one line for each figure and server with failed calls.
func (r *results) failures(figures []figure) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var lines []string
	for _, f := range figures {
		for _, server := range []string{nameBerth, namePeer} {
			if s := r.of(server, f.key); s.failed > 0 {
				lines = append(lines, fmt.Sprintf("%s, %s: %d failed, the first with: %v", f.title, server, s.failed, s.firstly))
			}
		}
	}
	return lines
}

// legend explains the columns, under each table.
const legend = "Median (p95). The ratio is how many times better berth is; below 1 it is worse. Targets are DESIGN.md's."

// text writes the table for a terminal.
func (r *results) text(w io.Writer, figures []figure) error {
	rows := append([][]string{header}, r.rows(figures)...)
	widths := make([]int, len(header))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	b.WriteString(legend + "\n")
	for _, line := range r.failures(figures) {
		b.WriteString("FAILED " + line + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// markdown writes the table and what the machine was.
func (r *results) markdown(w io.Writer, figures []figure, about []string) error {
	var b strings.Builder
	b.WriteString("# make bench: results\n\nWritten by `make bench`; how each figure is measured is in [docs/bench.md](../../docs/bench.md).\n\n")
	for _, line := range about {
		fmt.Fprintf(&b, "- %s\n", line)
	}
	fmt.Fprintf(&b, "\n%s\n\n| %s |\n|%s\n", legend, strings.Join(header, " | "), strings.Repeat("---|", len(header)))
	for _, row := range r.rows(figures) {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
	}
	if failed := r.failures(figures); len(failed) > 0 {
		b.WriteString("\n## Failed calls\n\n")
		for _, line := range failed {
			fmt.Fprintf(&b, "- %s\n", strings.ReplaceAll(line, "\n", " "))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
