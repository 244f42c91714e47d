package stats

import (
	"bytes"
	"fmt"
	"strconv"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A stall is a line of a pressure file: averages in percent, and the time that
// was lost, in microseconds.
type stall struct {
	avg10, avg60, avg300 float64
	total                uint64
}

// pressure is a pressure file. Old kernels have no line "full" for the
// processor.
type pressure struct{ some, full stall }

// parsePressure reads a pressure file:
//
//	some avg10=0.00 avg60=0.00 avg300=0.00 total=12
//	full avg10=0.00 avg60=0.00 avg300=0.00 total=3
func parsePressure(data []byte) (p pressure, err error) {
	for len(data) > 0 {
		line := data
		if end := bytes.IndexByte(data, '\n'); end >= 0 {
			line, data = data[:end], data[end+1:]
		} else {
			data = nil
		}
		kind, rest, _ := bytes.Cut(line, []byte{' '})
		var s *stall
		switch string(kind) {
		case "some":
			s = &p.some
		case "full":
			s = &p.full
		default:
			continue
		}
		if err := s.parse(rest); err != nil {
			return pressure{}, fmt.Errorf("line %q: %w", line, err)
		}
	}
	return p, nil
}

func (s *stall) parse(words []byte) (err error) {
	for len(words) > 0 {
		var word []byte
		word, words, _ = bytes.Cut(words, []byte{' '})
		if len(word) == 0 {
			continue
		}
		name, value, ok := bytes.Cut(word, []byte{'='})
		if !ok {
			return fmt.Errorf("%q is not name=value", word)
		}
		switch string(name) {
		case "avg10":
			s.avg10, err = parsePercent(value)
		case "avg60":
			s.avg60, err = parsePercent(value)
		case "avg300":
			s.avg300, err = parsePercent(value)
		case "total":
			s.total, err = parseUint(value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// parsePercent is strconv.ParseFloat for what the kernel writes, two digits
// after the point, without an allocation.
func parsePercent(data []byte) (float64, error) {
	whole, hundredths, ok := bytes.Cut(data, []byte{'.'})
	if ok && len(hundredths) == 2 && len(whole) > 0 && len(whole) <= 9 {
		a, err1 := parseUint(whole)
		b, err2 := parseUint(hundredths)
		if err1 == nil && err2 == nil {
			return float64(100*a+b) / 100, nil
		}
	}
	return strconv.ParseFloat(string(data), 64)
}

// cri is the pressure in the CRI's units: its totals are nanoseconds.
func (p pressure) cri() *runtime.PsiStats {
	return &runtime.PsiStats{Some: p.some.cri(), Full: p.full.cri()}
}

func (s stall) cri() *runtime.PsiData {
	return &runtime.PsiData{Avg10: s.avg10, Avg60: s.avg60, Avg300: s.avg300, Total: s.total * 1000}
}
