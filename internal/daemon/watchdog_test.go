package daemon

import (
	"context"
	"errors"
	"testing"
	"time"
)

// A beat that hangs or fails is told of and does not stop the next one.
func TestPulse(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	beats, fails := 0, 0
	pulse(ctx, time.Millisecond, func(ctx context.Context) error {
		switch beats++; beats {
		case 1:
			<-ctx.Done()
			return ctx.Err()
		case 2:
			return errors.New("no answer")
		case 4:
			cancel()
		}
		return nil
	}, func(error) { fails++ })
	if beats != 4 || fails != 2 {
		t.Errorf("%d beats, %d failed", beats, fails)
	}
}
