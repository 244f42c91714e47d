package manual

import (
	"regexp"
	"strings"
)

// configPage is the name of the page about the configuration file.
const configPage = "berth-config.toml"

var assignment = regexp.MustCompile(`^([a-z0-9_]+) = (.*)$`)

// Config gives the page about the configuration file, of the document that
// `berth config default` prints: comments, each before the keys that it is
// about, and tables.
func Config(document []byte, file, version string) Page {
	r := &roff{}
	r.title(configPage, 5, version)
	r.section("NAME")
	r.line(escape(configPage) + ` \- configuration of berth`)
	r.section("SYNOPSIS")
	r.line(italic(file))
	r.section("DESCRIPTION")
	d := &described{roff: r}
	for _, line := range strings.Split(string(document), "\n") {
		d.add(line)
	}
	d.flush()
	r.seeAlso(Page{Name: "berth-serve", Section: 1}, Page{Name: "berth-config", Section: 1})
	return Page{Name: configPage, Section: 5, Text: r.String()}
}

// A described document is read line by line: comment, then the keys below it.
type described struct {
	*roff
	table   string // with a dot at its end
	comment []string
	keys    []string
	listed  bool // the list of keys has begun
}

func (d *described) add(line string) {
	if text, ok := strings.CutPrefix(line, "#"); ok {
		if len(d.keys) > 0 {
			d.flush()
		}
		d.comment = append(d.comment, strings.TrimPrefix(text, " "))
		return
	}
	if m := assignment.FindStringSubmatch(line); m != nil {
		d.keys = append(d.keys, bold(d.table+m[1])+" = "+escape(m[2]))
		return
	}
	d.flush()
	if name, ok := strings.CutPrefix(line, "["); ok {
		d.begin()
		d.table = strings.TrimSuffix(name, "]") + "."
		d.subsection("[" + name)
	}
}

// begin writes the title of the list of keys, once.
func (d *described) begin() {
	if !d.listed {
		d.section("KEYS")
		d.listed = true
	}
}

// flush writes the keys that were read with their comment, or a comment that
// stands alone.
func (d *described) flush() {
	text := strings.Join(d.comment, "\n")
	switch {
	case len(d.keys) > 0:
		d.begin()
		d.item(d.keys...)
		d.itemText(text)
	case text != "":
		d.text(text)
	}
	d.comment, d.keys = nil, nil
}
