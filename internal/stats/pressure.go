package stats

import (
	"fmt"
	"strconv"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// parsePressure reads a pressure file:
//
//	some avg10=0.00 avg60=0.00 avg300=0.00 total=12
//	full avg10=0.00 avg60=0.00 avg300=0.00 total=3
//
// Its total is in microseconds, CRI's in nanoseconds. Old kernels have no
// line "full" for the processor.
func parsePressure(data []byte) (*runtime.PsiStats, error) {
	psi := &runtime.PsiStats{Some: &runtime.PsiData{}, Full: &runtime.PsiData{}}
	for line := range strings.Lines(string(data)) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		var d *runtime.PsiData
		switch words[0] {
		case "some":
			d = psi.Some
		case "full":
			d = psi.Full
		default:
			continue
		}
		for _, word := range words[1:] {
			if err := setPressure(d, word); err != nil {
				return nil, fmt.Errorf("line %q: %w", strings.TrimSpace(line), err)
			}
		}
	}
	return psi, nil
}

func setPressure(d *runtime.PsiData, word string) error {
	name, text, ok := strings.Cut(word, "=")
	if !ok {
		return fmt.Errorf("%q is not name=value", word)
	}
	if name == "total" {
		microseconds, err := strconv.ParseUint(text, 10, 64)
		d.Total = microseconds * 1000
		return err
	}
	average, err := strconv.ParseFloat(text, 64)
	switch name {
	case "avg10":
		d.Avg10 = average
	case "avg60":
		d.Avg60 = average
	case "avg300":
		d.Avg300 = average
	default:
		return nil // a newer kernel's
	}
	return err
}
