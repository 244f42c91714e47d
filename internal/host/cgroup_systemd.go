package host

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// units are systemd's slices and scopes.
type units interface {
	// StartSlice makes a slice and those that it is in. One that is there is
	// no error.
	StartSlice(ctx context.Context, name string) error
	// StartScope makes a scope of a process.
	StartScope(ctx context.Context, name string, pid int) error
	// SetProperties sets properties of a unit until it ends.
	SetProperties(ctx context.Context, name string, properties []systemd.Property) error
	// Stop ends a unit. One that is not there is no error.
	Stop(ctx context.Context, name string) error
	Close() error
}

// dialTimeout bounds a connection, until the bus has greeted.
var dialTimeout = 10 * time.Second

// systemdUnits asks the machine's systemd over D-Bus. It connects when first
// needed, and again when the connection broke.
type systemdUnits struct {
	v2   bool
	dial func(context.Context) (*systemd.Conn, error) // nil: the machine's

	mu     sync.Mutex // guards what follows; not held during a call or a dial
	link   *link      // nil: none
	closed bool
}

// A link is one connection, perhaps yet to be made. All who need it wait for
// the same one; a goroutine makes it.
type link struct {
	done   chan struct{} // closed when the rest is set
	conn   *systemd.Conn
	err    error
	cancel context.CancelFunc // ends the attempt, and the connection
}

func (l *link) close() {
	l.cancel()
	<-l.done
	if l.conn != nil {
		l.conn.Close()
	}
}

// usable tells whether the link works, or may yet.
func (l *link) usable() bool {
	select {
	case <-l.done:
		return l.err == nil && l.conn.Connected()
	default:
		return true
	}
}

func (s *systemdUnits) connect(ctx context.Context) (*link, error) {
	l, broken, err := s.take()
	if broken != nil {
		broken.close()
	}
	if err != nil {
		return nil, err
	}
	select {
	case <-l.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("connect to systemd over D-Bus: no answer: %w", context.Cause(ctx))
	}
	if l.err != nil {
		return nil, fmt.Errorf("connect to systemd over D-Bus: %w", l.err)
	}
	return l, nil
}

// take returns the link, a new one where there is none that is usable, and the
// one in whose place it is.
func (s *systemdUnits) take() (l, broken *link, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, fmt.Errorf("the connection to systemd was closed: %w", errdefs.ErrUnavailable)
	}
	if s.link != nil && s.link.usable() {
		return s.link, nil, nil
	}
	broken, s.link = s.link, newLink(s.dial)
	return s.link, broken, nil
}

func newLink(dial func(context.Context) (*systemd.Conn, error)) *link {
	if dial == nil {
		dial = systemd.NewWithContext
	}
	// The connection lives as long as the context it is made with.
	ctx, cancel := context.WithCancel(context.Background())
	l := &link{done: make(chan struct{}), cancel: cancel}
	go func() {
		defer close(l.done)
		late := time.AfterFunc(dialTimeout, cancel)
		l.conn, l.err = dial(ctx)
		if !late.Stop() {
			l.err = errors.Join(l.err, fmt.Errorf("the bus does not answer: %w", context.DeadlineExceeded))
		}
		if l.err != nil {
			cancel()
		}
	}()
	return l
}

// call makes a call to systemd. Where the connection turns out to be broken,
// it is made once more on a new one: every call here may be made twice.
func (s *systemdUnits) call(ctx context.Context, fn func(*systemd.Conn) error) error {
	for attempt := 1; ; attempt++ {
		l, err := s.connect(ctx)
		if err != nil {
			return err
		}
		err = fn(l.conn)
		var answer dbus.Error
		if err == nil || errors.As(err, &answer) || ctx.Err() != nil || attempt == 2 {
			return err
		}
		s.drop(l)
	}
}

// drop closes a link that does not work, unless another caller has.
func (s *systemdUnits) drop(l *link) {
	s.mu.Lock()
	mine := s.link == l
	if mine {
		s.link = nil
	}
	s.mu.Unlock()
	if mine {
		l.close()
	}
}

// Close ends the connection, and an attempt to make one. Closing twice is safe.
func (s *systemdUnits) Close() error {
	s.mu.Lock()
	l := s.link
	s.link, s.closed = nil, true
	s.mu.Unlock()
	if l != nil {
		l.close()
	}
	return nil
}

func (s *systemdUnits) StartSlice(ctx context.Context, name string) error {
	properties := []systemd.Property{
		systemd.PropDescription("berth: cgroup parent " + name),
		property("DefaultDependencies", false),
		property("CPUAccounting", true),
		property("MemoryAccounting", true),
		property("TasksAccounting", true),
	}
	if s.v2 {
		properties = append(properties, property("IOAccounting", true))
	} else {
		properties = append(properties, property("BlockIOAccounting", true))
	}
	done := make(chan string, 1)
	err := s.call(ctx, func(conn *systemd.Conn) error {
		_, err := conn.StartTransientUnitContext(ctx, name, "replace", properties, done)
		return err
	})
	if isDBusError(err, "UnitExists") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("systemd: start %s: %w", name, err)
	}
	return s.await(ctx, "start", name, done)
}

func (s *systemdUnits) SetProperties(ctx context.Context, name string, properties []systemd.Property) error {
	err := s.call(ctx, func(conn *systemd.Conn) error {
		return conn.SetUnitPropertiesContext(ctx, name, true, properties...)
	})
	if err != nil {
		return fmt.Errorf("systemd: set properties of %s: %w", name, err)
	}
	return nil
}

func (s *systemdUnits) Stop(ctx context.Context, name string) error {
	done := make(chan string, 1)
	err := s.call(ctx, func(conn *systemd.Conn) error {
		_, err := conn.StopUnitContext(ctx, name, "replace", done)
		return err
	})
	if isDBusError(err, "NoSuchUnit") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("systemd: stop %s: %w", name, err)
	}
	if err := s.await(ctx, "stop", name, done); err != nil {
		return err
	}
	// A unit that failed stays listed until it is reset.
	err = s.call(ctx, func(conn *systemd.Conn) error { return conn.ResetFailedUnitContext(ctx, name) })
	if err != nil && !isDBusError(err, "NoSuchUnit") {
		return fmt.Errorf("systemd: reset %s: %w", name, err)
	}
	return nil
}

func (s *systemdUnits) await(ctx context.Context, verb, name string, done <-chan string) error {
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("systemd: %s %s: job ended as %q; see journalctl -u %s", verb, name, result, name)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("systemd: %s %s: no answer: %w", verb, name, context.Cause(ctx))
	}
}

func property(name string, value any) systemd.Property {
	return systemd.Property{Name: name, Value: dbus.MakeVariant(value)}
}

func isDBusError(err error, name string) bool {
	var e dbus.Error
	return errors.As(err, &e) && strings.HasSuffix(e.Name, "."+name)
}
