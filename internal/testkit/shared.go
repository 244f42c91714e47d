package testkit

import (
	"bytes"
	"net"
	"sync"
	"testing"

	"berth/internal/host"
)

// A Buffer collects what is written and may be read meanwhile. The zero value
// is empty.
type Buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String is what was written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Listen serves one connection after another at the address in the network
// namespace, "" for the test's own, until the test ends.
func Listen(t testing.TB, netns, network, address string, serve func(net.Conn)) net.Addr {
	t.Helper()
	var l net.Listener
	open := func() (err error) { l, err = net.Listen(network, address); return err }
	err := error(nil)
	if netns == "" {
		err = open()
	} else {
		err = host.InNetNS(netns, open)
	}
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			_ = c.Close() // the other end may have gone
		}
	}()
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return l.Addr()
}

// SameID makes one call four times at once, as a client that retries does, and
// returns the one ID that all must have got.
func SameID(t testing.TB, call func() (string, error)) string {
	t.Helper()
	ids := make([]string, 4)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			id, err := call()
			if err != nil {
				t.Error(err)
			}
			ids[i] = id
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("one name, several IDs: %q", ids)
		}
	}
	return ids[0]
}
