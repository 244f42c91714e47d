package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Load reads the file at path over the defaults and validates the result. An
// empty path is DefaultPath, which need not exist; a path that is named must.
// What is wrong with the file is ErrInvalidArgument, one line a mistake.
func Load(path string) (*Config, error) {
	named := path != ""
	if !named {
		path = DefaultPath
	}
	data, err := os.ReadFile(path)
	if !named && errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	c, err := Decode(path, data)
	if err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		return nil, inFile(path, err)
	}
	return c, nil
}

// inFile puts the file's name before each of the errors that err joins.
func inFile(name string, err error) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return fmt.Errorf("%s: %w", name, err)
	}
	var errs []error
	for _, e := range joined.Unwrap() {
		errs = append(errs, fmt.Errorf("%s: %w", name, e))
	}
	return errors.Join(errs...)
}

// Decode reads a file's text over the defaults without validating the result.
// name is the file's name in errors.
func Decode(name string, data []byte) (*Config, error) {
	c := Default()
	err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(c)
	if err == nil {
		return c, nil
	}
	var missing *toml.StrictMissingError
	if errors.As(err, &missing) {
		return nil, unknownKeys(name, missing)
	}
	var wrong *toml.DecodeError
	if errors.As(err, &wrong) {
		return nil, wrongValue(name, data, wrong)
	}
	var unitless notDuration
	if errors.As(err, &unitless) {
		name += placeOf(string(unitless), data)
	}
	return nil, mistake(name + ": " + err.Error())
}

// placeOf finds the assignment of a value that is no string, for which the
// decoder tells neither key nor line. It returns ":LINE: `TEXT`", or nothing.
func placeOf(value string, data []byte) string {
	for i, line := range strings.Split(string(data), "\n") {
		_, right, ok := strings.Cut(line, "=")
		if ok && strings.HasPrefix(strings.TrimSpace(right), value) {
			return fmt.Sprintf(":%d: `%s`", i+1, strings.TrimSpace(line))
		}
	}
	return ""
}

func unknownKeys(name string, missing *toml.StrictMissingError) error {
	known := knownKeys()
	var errs []error
	for i := range missing.Errors {
		e := &missing.Errors[i]
		line, _ := e.Position()
		key := strings.Join(e.Key(), ".")
		errs = append(errs, mistake(fmt.Sprintf("%s:%d: unknown key %q; the nearest known one is %q",
			name, line, key, nearest(key, known))))
	}
	return errors.Join(errs...)
}

func wrongValue(name string, data []byte, e *toml.DecodeError) error {
	line, _ := e.Position()
	text := ""
	if lines := bytes.Split(data, []byte("\n")); line >= 1 && line <= len(lines) {
		text = string(bytes.TrimSpace(lines[line-1]))
	}
	where := fmt.Sprintf("%s:%d: `%s`", name, line, text)
	message := strings.TrimPrefix(e.Error(), "toml: ")
	key := strings.Join(e.Key(), ".")
	if key != "" {
		where += ": " + key
	}
	if kind, ok := knownKeys()[generic(key)]; ok && strings.Contains(message, "cannot") {
		message = "wants " + kind
	}
	return mistake(where + ": " + message)
}

const (
	// handlers is the table whose keys the user chooses.
	handlers = "runtime.handlers."
	// anyName stands in known keys for such a key.
	anyName = "<name>"
)

// generic is key with a user's names replaced by anyName.
func generic(key string) string {
	rest, ok := strings.CutPrefix(key, handlers)
	if !ok {
		return key
	}
	if i := strings.LastIndexByte(rest, '.'); i >= 0 {
		return handlers + anyName + rest[i:]
	}
	return handlers + anyName
}

// knownKeys maps every key, tables included, to what its value is.
func knownKeys() map[string]string {
	known := map[string]string{}
	walkKeys(reflect.TypeFor[Config](), "", known)
	return known
}

func walkKeys(t reflect.Type, prefix string, known map[string]string) {
	for f := range t.Fields() {
		key := prefix + f.Tag.Get("toml")
		known[key] = describe(f.Type)
		switch f.Type.Kind() {
		case reflect.Struct:
			walkKeys(f.Type, key+".", known)
		case reflect.Map:
			known[key+"."+anyName] = "a table"
			walkKeys(f.Type.Elem(), key+"."+anyName+".", known)
		}
	}
}

func describe(t reflect.Type) string {
	if t == reflect.TypeFor[Duration]() {
		return `a duration such as "90s"`
	}
	switch t.Kind() {
	case reflect.String:
		return `a string, in quotes`
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Slice:
		return `a list of strings, such as ["a", "b"]`
	}
	return "a table"
}

// nearest is the known key that the user most likely meant: one of the same
// name in another table, else the one with the smallest edit distance.
func nearest(key string, known map[string]string) string {
	names := make([]string, 0, len(known))
	for k := range known {
		names = append(names, k)
	}
	sort.Strings(names)
	best, bestDistance := "", -1
	for _, k := range names {
		d := distance(generic(key), k)
		if last(k) == last(key) {
			d = min(d, 2) // the right name in a wrong place
		}
		if bestDistance < 0 || d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return strings.Replace(best, anyName, handlerOf(key), 1)
}

// handlerOf is the handler that a key names, or anyName.
func handlerOf(key string) string {
	rest, ok := strings.CutPrefix(key, handlers)
	if !ok {
		return anyName
	}
	if i := strings.LastIndexByte(rest, '.'); i >= 0 {
		return rest[:i]
	}
	return rest
}

func last(key string) string { return key[strings.LastIndexByte(key, '.')+1:] }

// distance is the number of letters to insert, remove or replace to make b
// of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
