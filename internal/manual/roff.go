package manual

import (
	"fmt"
	"strings"
)

// A roff is a page that is being written.
type roff struct{ strings.Builder }

// escape has text printed as it is: a hyphen can be copied into a shell.
func escape(text string) string {
	return strings.NewReplacer(`\`, `\e`, `-`, `\-`, `"`, `\(dq`).Replace(text)
}

func bold(text string) string   { return `\fB` + escape(text) + `\fR` }
func italic(text string) string { return `\fI` + escape(text) + `\fR` }

// line writes text that is escaped already; a dot or a quote at its beginning
// is no request.
func (r *roff) line(text string) {
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	r.WriteString(text + "\n")
}

func (r *roff) request(format string, args ...any) { fmt.Fprintf(r, format+"\n", args...) }

func (r *roff) title(name string, section int, version string) {
	r.request(`.\" Written by "berth manual"; do not change it here.`)
	r.request(`.TH "%s" "%d" "" "berth %s" "berth"`, escape(strings.ToUpper(name)), section, escape(version))
	r.request(".nh\n.ad l")
}

func (r *roff) section(name string)    { r.request(`.SH "%s"`, escape(name)) }
func (r *roff) subsection(name string) { r.request(`.SS "%s"`, escape(name)) }

// item begins a paragraph with a tag, or with several.
func (r *roff) item(tags ...string) {
	request := ".TP"
	for _, tag := range tags {
		r.request("%s", request)
		r.line(tag)
		request = ".TQ"
	}
}

// text writes paragraphs: lines that are indented stay as they are, others are
// filled.
func (r *roff) text(text string) { r.paragraphs(text, ".PP") }

// itemText is text inside an item.
func (r *roff) itemText(text string) { r.paragraphs(text, ".IP") }

func (r *roff) paragraphs(text, begin string) {
	pending := begin == ".PP"
	lines := strings.Split(strings.Trim(text, "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		switch {
		case strings.TrimSpace(lines[i]) == "":
			pending = true
		case indented(lines[i]):
			end := i
			for end < len(lines) && (indented(lines[end]) || strings.TrimSpace(lines[end]) == "" && end+1 < len(lines) && indented(lines[end+1])) {
				end++
			}
			r.request("%s", begin)
			r.verbatim(lines[i:end])
			i, pending = end-1, true
		default:
			if pending {
				r.request("%s", begin)
				pending = false
			}
			r.line(escape(lines[i]))
		}
	}
}

func indented(line string) bool {
	return strings.HasPrefix(line, "  ") || strings.HasPrefix(line, "\t")
}

// verbatim writes lines that are not filled.
func (r *roff) verbatim(lines []string) {
	r.request(".nf\n.ft CR")
	for _, line := range lines {
		r.line(escape(line))
	}
	r.request(".ft R\n.fi")
}

func (r *roff) seeAlso(pages ...Page) {
	r.section("SEE ALSO")
	var names []string
	for _, p := range pages {
		names = append(names, fmt.Sprintf("%s(%d)", bold(p.Name), p.Section))
	}
	r.line(strings.Join(names, ", "))
}
