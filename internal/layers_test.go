// Package internal holds only tests of the code as code: that packages open
// with what a reader needs, import only downwards, and stay short. STYLE.md
// gives the reasons. They read source files and run nothing.
package internal

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// layers, from the top: a package imports those of lower lines, and of its own
// line. What is below a package's directory is of the same layer.
var layers = [][]string{
	{"cmd"},
	{"internal/daemon"},
	{"internal/podrun", "internal/doctor", "internal/manual"},
	{"internal/client", "internal/manifest"},
	{"internal/config"},
	{"internal/cri", "internal/stream"},
	// The reconciler undoes with the lifecycles' own functions.
	{"internal/sandbox", "internal/container", "internal/image", "internal/reconcile"},
	{"internal/steps"},
	{"internal/spec", "internal/network", "internal/stats", "internal/events", "internal/nri"},
	{"internal/supervisor"},
	// The supervisor writes logs itself; for shims of others the daemon does.
	{"internal/logs"},
	{"internal/engine"},
	{"internal/host"},
	{"internal/record"},
	{"internal/telemetry", "internal/paths"},
	{"internal/version", "api"},
}

// forTests are packages outside the layers: only tests, scripts and each other
// may import them.
var forTests = []string{"internal/testkit", "internal/deps", "scripts", "test"}

const (
	maxFunction = 60   // lines, from func to }
	maxFile     = 500  // lines
	maxPackage  = 3000 // lines, without tests
)

// exceptions to the limits, each with its reason: FILE, FILE:FUNCTION or
// PACKAGE. One that is no longer needed fails the test.
var exceptions = map[string]string{
	"internal/testkit/host.go:stores": "one query after another, for each store of containerd",
	"internal/container":              "to be split: the commands (exec.go) are a thing of their own",
}

// A source is one Go file that is no test and was not generated.
type source struct {
	path  string // below the module's root
	pkg   string // its directory
	lines int
	file  *ast.File
	fset  *token.FileSet
}

var sources = sync.OnceValues(func() ([]source, error) {
	var all []source
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel("..", path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && slices.Contains([]string{".git", "bin", "tools", "testdata"}, d.Name()):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		if !ast.IsGenerated(file) {
			all = append(all, source{rel, filepath.Dir(rel), bytes.Count(text, []byte("\n")), file, fset})
		}
		return nil
	})
	return all, err
})

func allSources(t *testing.T) []source {
	t.Helper()
	all, err := sources()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 {
		t.Fatalf("found only %d source files: the test looks in the wrong place", len(all))
	}
	return all
}

// below tells whether pkg is dir or inside it.
func below(pkg, dir string) bool { return pkg == dir || strings.HasPrefix(pkg, dir+"/") }

// layerOf is the line of layers that pkg is on, or -1.
func layerOf(pkg string) int {
	return slices.IndexFunc(layers, func(line []string) bool {
		return slices.ContainsFunc(line, func(dir string) bool { return below(pkg, dir) })
	})
}

func isForTests(pkg string) bool {
	return slices.ContainsFunc(forTests, func(dir string) bool { return below(pkg, dir) })
}

// A package comment says what the package is for, what always holds in it, and
// who may call it when: hardly to be done in one line.
func TestPackageComments(t *testing.T) {
	docs := map[string]string{}
	for _, s := range allSources(t) {
		docs[s.pkg] += s.file.Doc.Text()
	}
	for pkg, doc := range docs {
		name := filepath.Base(pkg)
		switch {
		case doc == "":
			t.Errorf("%s has no package comment", pkg)
		case isForTests(pkg), below(pkg, "api"):
		case !strings.HasPrefix(doc, "Package "+name+" ") && !strings.HasPrefix(doc, "Command "+name+" "):
			t.Errorf("%s: its comment begins with neither \"Package %s\" nor \"Command %s\"", pkg, name, name)
		case strings.Count(doc, ".") < 2 || len(doc) < 120:
			t.Errorf("%s: its comment says too little: purpose, invariants, concurrency", pkg)
		}
	}
}

func TestImportsGoDown(t *testing.T) {
	nowhere := map[string]bool{}
	for _, s := range allSources(t) {
		if isForTests(s.pkg) {
			continue
		}
		from := layerOf(s.pkg)
		if from < 0 {
			if !nowhere[s.pkg] {
				t.Errorf("%s is in no layer: add it to layers in this file, where DESIGN.md has it", s.pkg)
			}
			nowhere[s.pkg] = true
			continue
		}
		for _, imp := range s.file.Imports {
			path, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			pkg, ours := strings.CutPrefix(path, "berth/")
			if !ours {
				continue
			}
			switch to := layerOf(pkg); {
			case isForTests(pkg):
				t.Errorf("%s imports %s, which is for tests", s.path, pkg)
			case to < from:
				t.Errorf("%s imports %s, which is above %s", s.path, pkg, s.pkg)
			}
		}
	}
}

func TestSizes(t *testing.T) {
	used := map[string]bool{}
	check := func(what string, lines, limit int) {
		if lines <= limit {
			return
		}
		if _, ok := exceptions[what]; ok {
			used[what] = true
			return
		}
		t.Errorf("%s has %d lines, more than %d: split it, or explain it in exceptions", what, lines, limit)
	}
	packages := map[string]int{}
	for _, s := range allSources(t) {
		packages[s.pkg] += s.lines
		check(s.path, s.lines, maxFile)
		for _, decl := range s.file.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok {
				lines := s.fset.Position(fn.End()).Line - s.fset.Position(fn.Pos()).Line + 1
				check(fmt.Sprintf("%s:%s", s.path, fn.Name.Name), lines, maxFunction)
			}
		}
	}
	for pkg, lines := range packages {
		check(pkg, lines, maxPackage)
	}
	for what := range exceptions {
		if !used[what] {
			t.Errorf("the exception for %s is no longer needed", what)
		}
	}
}

// Names that say nothing attract everything.
func TestNames(t *testing.T) {
	empty := []string{"util", "utils", "helper", "helpers", "common", "manager", "misc"}
	for _, s := range allSources(t) {
		if slices.Contains(empty, filepath.Base(s.pkg)) || slices.Contains(empty, strings.TrimSuffix(filepath.Base(s.path), ".go")) {
			t.Errorf("%s: name it after what it holds", s.path)
		}
	}
}
