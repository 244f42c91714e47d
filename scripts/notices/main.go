// Command notices prints the licences of all that is linked into programs.
//
//	notices PROGRAM...
//
// The programs themselves say which modules they hold, so nothing is listed
// that is not in them and nothing that is can be forgotten. The texts come from
// the module cache; a module without one is an error. What comes from no
// module: Go's own library, and the C libraries that a program which uses cgo
// is linked with.
//
// The same programs give the same text. It runs once and holds no state.
package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const rule = "================================================================================\n"

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: notices PROGRAM...")
		os.Exit(2)
	}
	var text bytes.Buffer
	err := write(&text, os.Args[1:])
	if err == nil {
		_, err = text.WriteTo(os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "notices:", err)
		os.Exit(1)
	}
}

// A part is something that programs are linked with.
type part struct {
	name  string
	files []string
}

func write(w io.Writer, programs []string) error {
	modules, cgo, err := linked(programs)
	if err != nil {
		return err
	}
	parts, err := goParts(modules)
	if err != nil {
		return err
	}
	if cgo {
		parts = append(parts, cParts()...)
	}
	fmt.Fprintf(w, "The programs of berth are linked with what is listed here, each under its own licence.\nberth's own licence is in LICENSE.\n\n")
	for _, p := range parts {
		fmt.Fprintf(w, "  %s\n", p.name)
	}
	if cgo {
		fmt.Fprintf(w, "\nlibseccomp and the C library may be exchanged: berth's source and its Makefile build\nthe programs anew with those that are installed where it is run.\n")
	}
	return texts(w, parts)
}

// texts prints each text once, after the names of all that are under it.
func texts(w io.Writer, parts []part) error {
	var all []string
	names := map[string][]string{}
	for _, p := range parts {
		for _, file := range p.files {
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			text := string(bytes.TrimSpace(data))
			if names[text] == nil {
				all = append(all, text)
			}
			if !slices.Contains(names[text], p.name) {
				names[text] = append(names[text], p.name)
			}
		}
	}
	for _, text := range all {
		fmt.Fprintf(w, "\n%s%s\n%s\n%s\n", rule, strings.Join(names[text], "\n"), rule, text)
	}
	return nil
}

// linked are the modules in programs, as path@version, and whether one of them
// holds C.
func linked(programs []string) (modules []string, cgo bool, err error) {
	for _, program := range programs {
		info, err := buildinfo.ReadFile(program)
		if err != nil {
			return nil, false, err
		}
		for _, setting := range info.Settings {
			cgo = cgo || setting.Key == "CGO_ENABLED" && setting.Value == "1"
		}
		for _, m := range append(info.Deps, &info.Main) {
			if m.Replace != nil {
				m = m.Replace
			}
			if m.Version == "" || m.Version == "(devel)" { // berth itself
				continue
			}
			modules = append(modules, m.Path+"@"+m.Version)
		}
	}
	slices.Sort(modules)
	return slices.Compact(modules), cgo, nil
}

// goParts are Go's library and modules, with the licences in their directories.
func goParts(modules []string) ([]part, error) {
	root, err := exec.Command(goCommand(), "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	parts := []part{{"Go's standard library", []string{filepath.Join(strings.TrimSpace(string(root)), "LICENSE")}}}
	cmd := exec.Command(goCommand(), append([]string{"mod", "download", "-json"}, modules...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go mod download: %w", err)
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var m struct{ Path, Version, Dir string }
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		files, err := licences(m.Dir)
		if err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("%s %s has no licence in %s", m.Path, m.Version, m.Dir)
		}
		parts = append(parts, part{m.Path + " " + m.Version, files})
	}
	slices.SortFunc(parts[1:], func(a, b part) int { return strings.Compare(a.name, b.name) })
	return parts, nil
}

func goCommand() string {
	if name := os.Getenv("GO"); name != "" {
		return name
	}
	return "go"
}

var licence = regexp.MustCompile(`(?i)^(licen[cs]e|copying|copyright|notice|unlicense|patents)([.-].*)?$`)

// licences are the texts at the top of a module, and of what it has taken over
// from others.
func licences(dir string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		top := !strings.Contains(rel, "/")
		switch {
		case d.IsDir() && (top && (d.Name() == "third_party" || rel == ".") || !top):
		case d.IsDir():
			return fs.SkipDir
		case licence.MatchString(d.Name()) && !strings.HasSuffix(d.Name(), ".go"):
			files = append(files, path)
		}
		return nil
	})
	return files, err
}

// cParts are the C libraries, with what Debian says of them.
func cParts() []part {
	var parts []part
	for _, c := range []struct{ name, doc string }{
		{"libseccomp (LGPL 2.1)", "/usr/share/doc/libseccomp-dev/copyright"},
		{"the GNU C library (LGPL 2.1 and others)", "/usr/share/doc/libc6-dev/copyright"},
	} {
		p := part{name: c.name}
		if _, err := os.Stat(c.doc); err == nil {
			p.files = []string{c.doc}
		}
		parts = append(parts, p)
	}
	return parts
}
