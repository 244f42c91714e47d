package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8/decor"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/yaml"
)

// An output is how a command shows what it found: the flag -o.
type output struct{ format string }

// flag adds -o to cmd. The first format is the default.
func (o *output) flag(cmd *cobra.Command, formats ...string) {
	cmd.Flags().StringVarP(&o.format, "output", "o", formats[0], "how to print: "+strings.Join(formats, ", "))
	complete := func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return formats, cobra.ShellCompDirectiveNoFileComp
	}
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("output", complete)
	pre := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		for _, f := range formats {
			if o.format == f {
				if pre != nil {
					return pre(cmd, args)
				}
				return nil
			}
		}
		return fmt.Errorf("--output %q: want one of %s", o.format, strings.Join(formats, ", "))
	}
}

// listFormats are the formats of commands that list.
var listFormats = []string{"table", "json", "yaml"}

// message prints m, or the table.
func (o *output) message(w io.Writer, m proto.Message, t func() *table) error {
	if o.format == "table" {
		return t().write(w)
	}
	doc, err := messageJSON(m)
	if err != nil {
		return err
	}
	return o.document(w, doc)
}

// document prints JSON as the format asks.
func (o *output) document(w io.Writer, doc []byte) error {
	if o.format == "yaml" {
		y, err := yaml.JSONToYAML(doc)
		if err != nil {
			return fmt.Errorf("print as YAML: %w", err)
		}
		_, err = w.Write(y)
		return err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, doc, "", "  "); err != nil {
		return fmt.Errorf("print as JSON: %w", err)
	}
	b.WriteByte('\n')
	_, err := w.Write(b.Bytes())
	return err
}

// messageJSON is a message as compact JSON, always the same for the same
// message, which protojson's own spacing is not.
func messageJSON(m proto.Message) ([]byte, error) {
	doc, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("print as JSON: %w", err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, doc); err != nil {
		return nil, fmt.Errorf("print as JSON: %w", err)
	}
	return b.Bytes(), nil
}

// A table is printed with aligned columns.
type table struct {
	header []string
	rows   [][]string
}

func newTable(header ...string) *table { return &table{header: header} }

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range append([][]string{t.header}, t.rows...) {
		line := strings.TrimRight(strings.Join(row, "\t"), "\t ")
		if _, err := fmt.Fprintln(tw, line); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// shortID is as much of an ID as a table shows.
func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 13)]
}

// age is the time since t, in nanoseconds since the epoch, as kubectl shows it.
func age(t int64, now time.Time) string {
	if t == 0 {
		return "-"
	}
	return duration.HumanDuration(max(0, now.Sub(time.Unix(0, t))))
}

// size is a number of bytes for people.
func size[T int64 | uint64](n T) string {
	if n < 1000 {
		return fmt.Sprintf("%dB", n)
	}
	return fmt.Sprintf("%.1f", decor.SizeB1000(n))
}

// binarySize is the same in units of 1024, as memory limits are written.
func binarySize[T int64 | uint64](n T) string {
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	return fmt.Sprintf("%.1f", decor.SizeB1024(n))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
