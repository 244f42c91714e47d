package events

import (
	"errors"
	"testing"
)

func TestSlowSubscriberDelaysNobody(t *testing.T) {
	var b Bus[int]
	slow, quick := b.Subscribe(), b.Subscribe()
	for i := range Buffer + 1 {
		b.Publish(i)
		if got := <-quick.C; got != i {
			t.Fatalf("got %d, want %d", got, i)
		}
	}
	n := 0
	for range slow.C {
		n++
	}
	if n != Buffer || !errors.Is(slow.Err(), ErrTooSlow) {
		t.Errorf("%d events, err %v", n, slow.Err())
	}
	quick.Cancel()
	quick.Cancel()
	if _, open := <-quick.C; open || quick.Err() != nil || b.Watched() {
		t.Errorf("after Cancel: err %v, watched %v", quick.Err(), b.Watched())
	}
}

func TestCloseEndsAll(t *testing.T) {
	var b Bus[int]
	s := b.Subscribe()
	b.Close()
	late := b.Subscribe()
	for _, s := range []*Subscription[int]{s, late} {
		if _, open := <-s.C; open || !errors.Is(s.Err(), ErrClosed) {
			t.Errorf("err %v", s.Err())
		}
	}
}
