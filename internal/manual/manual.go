// Package manual writes the manual pages, in the roff that man(7) describes,
// from what the program itself has: its commands and its documented
// configuration. So a page cannot say what the program does not.
//
// The same program gives the same pages, byte for byte: nothing in them is
// taken from the machine, the time or the environment. The functions are pure
// and may be called from everywhere.
package manual

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// A Page is one manual page.
type Page struct {
	Name    string // "berth-run"
	Section int
	Text    string
}

// File is the page's usual file name.
func (p Page) File() string { return fmt.Sprintf("%s.%d", p.Name, p.Section) }

// Commands gives a page for the command and each below it, but for hidden ones
// and those of its completion, whose help has the same words.
func Commands(root *cobra.Command, version string) []Page {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	return commands(root, version)
}

func commands(cmd *cobra.Command, version string) []Page {
	pages := []Page{{Name: pageName(cmd), Section: 1, Text: commandText(cmd, version)}}
	if cmd.Name() == "completion" {
		return pages
	}
	for _, sub := range below(cmd) {
		pages = append(pages, commands(sub, version)...)
	}
	return pages
}

// below are the commands that have a page.
func below(cmd *cobra.Command) []*cobra.Command {
	var shown []*cobra.Command
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" {
			shown = append(shown, sub)
		}
	}
	return shown
}

func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

func commandText(cmd *cobra.Command, version string) string {
	r := &roff{}
	r.title(pageName(cmd), 1, version)
	r.section("NAME")
	r.line(escape(pageName(cmd)) + ` \- ` + escape(cmd.Short))
	r.section("SYNOPSIS")
	r.line(bold(cmd.CommandPath()) + " " + escape(synopsis(cmd)))
	r.section("DESCRIPTION")
	if cmd.Long != "" {
		r.text(cmd.Long)
	} else {
		r.text(cmd.Short + ".")
	}
	if len(cmd.Aliases) > 0 {
		r.text("Also called " + strings.Join(cmd.Aliases, ", ") + ".")
	}
	if subs := below(cmd); len(subs) > 0 {
		subcommands(r, cmd, subs)
	}
	flags(r, "OPTIONS", cmd.NonInheritedFlags())
	flags(r, "OPTIONS OF ALL COMMANDS", cmd.InheritedFlags())
	if cmd.Example != "" {
		r.section("EXAMPLES")
		r.verbatim(strings.Split(strings.Trim(cmd.Example, "\n"), "\n"))
	}
	if cmd.HasParent() {
		r.seeAlso(Page{Name: pageName(cmd.Parent()), Section: 1})
	} else {
		r.seeAlso(Page{Name: configPage, Section: 5})
	}
	return r.String()
}

// synopsis is what follows the command's path in its line of use.
func synopsis(cmd *cobra.Command) string {
	if len(below(cmd)) > 0 {
		return "COMMAND [OPTIONS]"
	}
	return strings.TrimSpace(strings.TrimPrefix(cmd.UseLine(), cmd.CommandPath()))
}

// subcommands lists them under the titles of their groups, as help does.
func subcommands(r *roff, cmd *cobra.Command, subs []*cobra.Command) {
	r.section("COMMANDS")
	list := func(group string) {
		for _, sub := range subs {
			if sub.GroupID == group {
				r.item(bold(pageName(sub)) + "(1)")
				r.line(escape(sub.Short))
			}
		}
	}
	for _, group := range cmd.Groups() {
		r.subsection(strings.TrimSuffix(group.Title, ":"))
		list(group.ID)
	}
	list("")
}

func flags(r *roff, title string, set *pflag.FlagSet) {
	if !set.HasAvailableFlags() {
		return
	}
	r.section(title)
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		name := bold("--" + f.Name)
		if f.Shorthand != "" {
			name = bold("-"+f.Shorthand) + ", " + name
		}
		if value != "" {
			name += " " + italic(value)
		}
		r.item(name)
		if d := f.DefValue; d != "" && d != "false" && d != "0" && d != "0s" && d != "[]" {
			usage += " (default " + d + ")"
		}
		r.line(escape(usage))
	})
}
