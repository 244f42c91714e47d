package host

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// units are systemd's slices and scopes.
type units interface {
	// StartSlice makes a slice and those that it is in. One that is there is
	// no error.
	StartSlice(ctx context.Context, name string) error
	// SetProperties sets properties of a unit until it ends.
	SetProperties(ctx context.Context, name string, properties []systemd.Property) error
	// Stop ends a unit. One that is not there is no error.
	Stop(ctx context.Context, name string) error
	Close() error
}

// systemdUnits asks the machine's systemd over D-Bus. It connects when first
// needed, and again when the connection broke.
type systemdUnits struct {
	v2   bool
	dial func(context.Context) (*systemd.Conn, error) // nil: the machine's

	mu   sync.Mutex // guards conn; not held during a call
	conn *systemd.Conn
}

func (s *systemdUnits) connect(ctx context.Context) (*systemd.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil && s.conn.Connected() {
		return s.conn, nil
	}
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
	dial := s.dial
	if dial == nil {
		dial = systemd.NewWithContext
	}
	// The connection lives as long as the context it was made with.
	conn, err := dial(context.WithoutCancel(ctx))
	if err != nil {
		return nil, fmt.Errorf("connect to systemd over D-Bus: %w", err)
	}
	s.conn = conn
	return conn, nil
}

// call makes a call to systemd. Where the connection turns out to be broken,
// it is made once more on a new one: every call here may be made twice.
func (s *systemdUnits) call(ctx context.Context, fn func(*systemd.Conn) error) error {
	for attempt := 1; ; attempt++ {
		conn, err := s.connect(ctx)
		if err != nil {
			return err
		}
		err = fn(conn)
		var answer dbus.Error
		if err == nil || errors.As(err, &answer) || ctx.Err() != nil || attempt == 2 {
			return err
		}
		s.drop(conn)
	}
}

// drop closes a connection that does not work, unless another caller has.
func (s *systemdUnits) drop(conn *systemd.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == conn {
		s.conn.Close()
		s.conn = nil
	}
}

func (s *systemdUnits) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
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
