package main

import (
	"math"
	"slices"
)

// A series is what one figure came to on one server, sample by sample.
type series struct {
	samples []float64
	failed  int
	firstly error // the first failure
}

func (s *series) add(v float64) { s.samples = append(s.samples, v) }

func (s *series) fail(err error) {
	if s.failed == 0 {
		s.firstly = err
	}
	s.failed++
}

// quantile is by nearest rank: a value that was measured, never one between
// two. Of no samples it is not a number.
func quantile(samples []float64, q float64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(samples))
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// median is the middle one, or the mean of the two in the middle.
func median(samples []float64) float64 {
	n := len(samples)
	if n == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(samples))
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// p95 is what 95 of 100 samples are no worse than.
func (f figure) p95(samples []float64) float64 {
	if !f.more {
		return quantile(samples, 0.95)
	}
	turned := make([]float64, len(samples))
	for i, v := range samples {
		turned[i] = -v
	}
	return -quantile(turned, 0.95)
}

// better is how many times better ours is than theirs; below 1 it is worse.
func (f figure) better(ours, theirs float64) float64 {
	if f.more {
		return ours / theirs
	}
	return theirs / ours
}

// met tells whether a median is within the target.
func (f figure) met(v float64) bool {
	if f.more {
		return v >= f.target
	}
	return v <= f.target
}
