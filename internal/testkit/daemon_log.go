package testkit

import (
	"os"
	"strings"
)

// Log is the end of the daemon's log.
func (d *Daemon) Log(lines int) string {
	text, err := os.ReadFile(d.logFile)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Races are the reports of the race detector in the log.
func (d *Daemon) Races() string {
	text, err := os.ReadFile(d.logFile)
	if err != nil {
		return ""
	}
	if i := strings.Index(string(text), "WARNING: DATA RACE"); i >= 0 {
		return string(text[i:min(len(text), i+6000)])
	}
	if i := strings.Index(string(text), "\npanic: "); i >= 0 {
		return string(text[i:min(len(text), i+6000)])
	}
	return ""
}
