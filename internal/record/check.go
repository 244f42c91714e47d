package record

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"
)

// A Report is what Check found in a store.
type Report struct {
	Version int // of the schema
	// Verdict is SQLite's on its file: "ok", or what is wrong.
	Verdict    string
	Sandboxes  []*Sandbox
	Containers []*Container
	Unfinished []Unfinished
	Damaged    []Damaged
}

// A Damaged row is one that cannot be read.
type Damaged struct {
	Table, ID, Reason string
	// Aside is when it was set aside; zero: it is still in its table.
	Aside time.Time
}

// Check reads the store at path, of a running daemon or of none, and changes
// nothing. What is wrong with the store is in the report; a file that cannot
// be read at all is an error, and a newer version's is not read.
func Check(ctx context.Context, path string) (report *Report, err error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("record store: %w", err)
	}
	query := url.Values{"mode": {"ro"}, "_pragma": {"busy_timeout(10000)"}}
	if _, err := os.Stat(path + "-wal"); errors.Is(err, os.ErrNotExist) {
		query.Set("immutable", "1") // else reading makes a -wal and a -shm
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: query.Encode()}).String())
	if err != nil {
		return nil, fmt.Errorf("record store %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	report = &Report{}
	if err := report.read(ctx, db); err != nil {
		return nil, fmt.Errorf("record store %s: %w", path, err)
	}
	return report, nil
}

func (r *Report) read(ctx context.Context, db *sql.DB) error {
	err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&r.Version)
	if err == nil && r.Version > Version {
		r.Verdict = fmt.Sprintf("schema version %d is of a newer berth; this one reads %d", r.Version, Version)
		return nil
	}
	if err == nil {
		err = db.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&r.Verdict)
	}
	if damagedFile(err) {
		r.Verdict = err.Error()
		return nil
	}
	if err != nil || r.Verdict != "ok" {
		return err
	}
	if r.Sandboxes, err = readRows(ctx, db, "sandboxes", sandboxCodec, r); err != nil {
		return err
	}
	if r.Containers, err = readRows(ctx, db, "containers", containerCodec, r); err != nil {
		return err
	}
	if r.Unfinished, err = unfinished(ctx, db); err != nil {
		return err
	}
	return r.readAside(ctx, db)
}

// readRows are the records of a table; those that cannot be read go into the
// report.
func readRows[T any](ctx context.Context, db *sql.DB, table string, c codec[T], r *Report) ([]*T, error) {
	rows, damaged, err := decodeRows(ctx, db, table, c)
	for id, reason := range damaged {
		r.Damaged = append(r.Damaged, Damaged{Table: table, ID: id, Reason: reason.Error()})
	}
	var all []*T
	for _, value := range rows {
		all = append(all, value)
	}
	return all, err
}

func (r *Report) readAside(ctx context.Context, db *sql.DB) error {
	rows, err := db.QueryContext(ctx, "SELECT source, id, reason, found FROM damaged")
	if err != nil {
		return fmt.Errorf("read damaged: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var d Damaged
		var found int64
		if err := rows.Scan(&d.Table, &d.ID, &d.Reason, &found); err != nil {
			return fmt.Errorf("read damaged: %w", err)
		}
		d.Aside = time.Unix(0, found)
		r.Damaged = append(r.Damaged, d)
	}
	return rows.Err()
}
