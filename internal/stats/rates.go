package stats

import (
	"maps"
	"sync"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// shortest is the shortest time over which a rate says something. Callers that
// ask more often get the last rate.
const shortest = 100 * time.Millisecond

// sample is a reading of a cgroup's processor time, in nanoseconds.
type sample struct {
	at    time.Time // its monotonic part counts
	usage uint64
	rate  *uint64 // up to this sample
}

// leastPrune is how many samples are kept without a look at whose they are.
const leastPrune = 256

// rates keeps the last sample of each ID.
type rates struct {
	exists func(id string) bool

	mu   sync.Mutex // guards what follows
	last map[string]sample
	left int // samples after the last pruning
}

// next takes a new reading and returns the rate since the last one, in
// nanoseconds per second; nil where there is none.
func (r *rates) next(id string, usage uint64, at time.Time) *runtime.UInt64Value {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, known := r.last[id]
	if !known {
		r.pruneLocked()
	}
	s := sample{at: at, usage: usage}
	switch elapsed := at.Sub(last.at); {
	case !known, usage < last.usage && elapsed >= 0:
		// The first reading, or a new cgroup of the same ID.
	case elapsed < shortest:
		s = last
	default:
		rate := uint64(float64(usage-last.usage) / elapsed.Seconds())
		s.rate = &rate
	}
	r.last[id] = s
	if s.rate == nil {
		return nil
	}
	return value(*s.rate)
}

// pruneLocked drops the samples of what is no more once there are twice as
// many as it left last, so that the work is spread over all readings.
func (r *rates) pruneLocked() {
	if len(r.last) < max(2*r.left, leastPrune) {
		return
	}
	maps.DeleteFunc(r.last, func(id string, _ sample) bool { return !r.exists(id) })
	r.left = len(r.last)
}
