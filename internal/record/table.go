package record

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// A codec turns a record into the two columns that hold it, and back.
type codec[T any] struct {
	kind   string
	id     func(*T) string
	encode func(*T) (body, config []byte, err error)
	decode func(body, config []byte) (*T, error)
}

// A Table is all records of one kind, in memory and on disk.
type Table[T any] struct {
	store *Store
	name  string
	codec codec[T]

	put, remove *sql.Stmt

	// write lets one change at a time read, change and write a row; it is taken
	// before the store's, and that before mu.
	write turns
	mu    sync.RWMutex // guards rows; never held across a disk access
	rows  map[string]*T
}

func newTable[T any](s *Store, name string, c codec[T]) *Table[T] {
	return &Table[T]{store: s, name: name, codec: c, write: make(turns, 1), rows: map[string]*T{}}
}

// read fills rows and returns what could not be read, with the reason.
//
// Errors: ErrFailedPrecondition for a row that a newer berth wrote; it is no
// damage.
func (t *Table[T]) read(ctx context.Context) (damaged map[string]error, err error) {
	t.rows, damaged, err = decodeRows(ctx, t.store.db, t.name, t.codec)
	return damaged, err
}

func decodeRows[T any](ctx context.Context, db *sql.DB, table string, c codec[T]) (values map[string]*T, damaged map[string]error, err error) {
	rows, err := db.QueryContext(ctx, "SELECT id, body, config FROM "+table)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", table, err)
	}
	defer rows.Close()
	values, damaged = map[string]*T{}, map[string]error{}
	for rows.Next() {
		var id string
		var body, config []byte
		if err := rows.Scan(&id, &body, &config); err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", table, err)
		}
		value, err := c.decode(body, config)
		if err == nil && c.id(value) != id {
			err = fmt.Errorf("the row of %s holds the record of %q", id, c.id(value))
		}
		if errdefs.IsFailedPrecondition(err) {
			return nil, nil, fmt.Errorf("%s %s: %w", c.kind, id, err)
		}
		if err != nil {
			damaged[id] = err
			continue
		}
		values[id] = value
	}
	return values, damaged, rows.Err()
}

// begin sets aside what could not be read and makes the table ready for
// changes.
func (t *Table[T]) begin(ctx context.Context, damaged map[string]error) (err error) {
	db := t.store.db
	for id, reason := range damaged {
		t.store.log.Error("a record cannot be read; it is set aside in the table damaged, and what it names on this machine is removed",
			t.codec.kind, id, "err", reason)
		if err := setRowAside(ctx, db, t.name, id, reason); err != nil {
			return fmt.Errorf("set damaged record %s aside: %w", id, err)
		}
	}
	if t.put, err = db.PrepareContext(ctx, "INSERT OR REPLACE INTO "+t.name+" (id, body, config) VALUES (?, ?, ?)"); err != nil {
		return err
	}
	t.remove, err = db.PrepareContext(ctx, "DELETE FROM "+t.name+" WHERE id = ?")
	return err
}

func setRowAside(ctx context.Context, db *sql.DB, table, id string, reason error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // after a commit this does nothing
	_, err = tx.ExecContext(ctx, "INSERT INTO damaged SELECT ?, id, ?, ?, body, config FROM "+table+" WHERE id = ?",
		table, reason.Error(), time.Now().UnixNano(), id)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "DELETE FROM "+table+" WHERE id = ?", id); err != nil {
		return err
	}
	return tx.Commit()
}

// Get returns a record, which the caller does not modify; ErrNotFound.
func (t *Table[T]) Get(id string) (*T, error) {
	t.mu.RLock()
	value := t.rows[id]
	t.mu.RUnlock()
	if value == nil {
		return nil, fmt.Errorf("%s %s: %w", t.codec.kind, id, errdefs.ErrNotFound)
	}
	return value, nil
}

// Resolve finds a record by its ID or a unique prefix of it.
//
// Errors: ErrNotFound; ErrInvalidArgument for a prefix of several.
func (t *Table[T]) Resolve(prefix string) (*T, error) {
	if value, err := t.Get(prefix); err == nil || prefix == "" {
		return value, err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	var found *T
	for id, value := range t.rows {
		if !strings.HasPrefix(id, prefix) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s %s begins several IDs; give more of it: %w", t.codec.kind, prefix, errdefs.ErrInvalidArgument)
		}
		found = value
	}
	if found == nil {
		return nil, fmt.Errorf("%s %s: %w", t.codec.kind, prefix, errdefs.ErrNotFound)
	}
	return found, nil
}

// List returns all records in no order.
func (t *Table[T]) List() []*T {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Collect(maps.Values(t.rows))
}

// Put makes or replaces a record. The table owns value from now on.
func (t *Table[T]) Put(value *T) error {
	t.write.Lock()
	defer t.write.Unlock()
	return t.putLocked(value)
}

func (t *Table[T]) putLocked(value *T) error {
	id := t.codec.id(value)
	body, config, err := t.codec.encode(value)
	if err == nil {
		err = t.store.exec(t.put, id, body, config)
	}
	if err != nil {
		return fmt.Errorf("record %s %s: %w", t.codec.kind, id, err)
	}
	t.mu.Lock()
	t.rows[id] = value
	t.mu.Unlock()
	return nil
}

// Update replaces a record by what change makes of a copy of it, and returns
// the new one; ErrNotFound. The copy is shallow: change assigns fields and
// modifies nothing that they point to.
func (t *Table[T]) Update(id string, change func(*T)) (*T, error) {
	t.write.Lock()
	defer t.write.Unlock()
	value, err := t.Get(id)
	if err != nil {
		return nil, err
	}
	changed := *value
	change(&changed)
	return &changed, t.putLocked(&changed)
}

// Delete removes a record; one that is not there is no error.
func (t *Table[T]) Delete(id string) error {
	t.write.Lock()
	defer t.write.Unlock()
	if err := t.store.exec(t.remove, id); err != nil {
		return fmt.Errorf("delete record of %s %s: %w", t.codec.kind, id, err)
	}
	t.mu.Lock()
	delete(t.rows, id)
	t.mu.Unlock()
	return nil
}
