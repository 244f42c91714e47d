package config

import (
	"fmt"
	"os"
	"time"
)

// A Duration is a length of time, written in the file as "90s" or "1h30m". It
// is a struct so that a bare number, which says no unit, is a wrong type.
type Duration struct{ time.Duration }

// MarshalText is d as UnmarshalText reads it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a duration such as "90s" or "1h30m".
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return notDuration(text)
	}
	d.Duration = v
	return nil
}

// notDuration is text that is no duration.
type notDuration string

func (n notDuration) Error() string {
	return fmt.Sprintf("%q is not a duration; write one such as \"90s\" or \"1h30m\"", string(n))
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}
