package config

import (
	"fmt"
	"os"
	"time"
)

// A Duration is a length of time, written in the file as "90s" or "1h30m".
type Duration time.Duration

// D is d as the standard library's type.
func (d Duration) D() time.Duration { return time.Duration(d) }

// String is d as UnmarshalText reads it.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText is d as UnmarshalText reads it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a duration such as "90s" or "1h30m".
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration; write one such as \"90s\" or \"1h30m\"", text)
	}
	*d = Duration(v)
	return nil
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}
