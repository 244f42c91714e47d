package record

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// errDamaged is a database whose own check fails.
var errDamaged = errors.New("damaged")

// damagedFile tells whether err says that the file is no sound database.
func damagedFile(err error) bool {
	if errors.Is(err, errDamaged) {
		return true
	}
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	code := e.Code() & 0xff
	return code == sqlite3.SQLITE_CORRUPT || code == sqlite3.SQLITE_NOTADB
}

func setAside(path, aside string) error {
	if err := os.Rename(path, aside); err != nil {
		return err
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Rename(path+suffix, aside+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// salvaged are the tables and columns that are taken over from a damaged file,
// each with its key.
var salvaged = []struct{ table, columns, key string }{
	{"sandboxes", "id, body, config", "id"},
	{"containers", "id, body, config", "id"},
	{"journal", "op, object, step, begun", "op, object"},
}

// salvage copies what can be read of a damaged file into this store and
// returns the number of rows. The file is not changed.
func (s *Store) salvage(ctx context.Context, aside string) (rows int, err error) {
	dsn := url.URL{Scheme: "file", OmitHost: true, Path: aside, RawQuery: "mode=ro"}
	from, err := sql.Open("sqlite", dsn.String())
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	from.SetMaxOpenConns(1)
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	for _, t := range salvaged {
		// A reading ends at a page that is damaged, so from both ends.
		for _, order := range []string{t.key, strings.ReplaceAll(t.key, ",", " DESC,") + " DESC"} {
			n, err := copyRows(ctx, from, tx, t.table, t.columns, order)
			if err != nil {
				return 0, errors.Join(err, tx.Rollback())
			}
			rows += n
		}
	}
	return rows, tx.Commit()
}

// copyRows copies rows until there are no more, or one cannot be read. What is
// wrong with a row itself is found when the store is loaded.
func copyRows(ctx context.Context, from *sql.DB, to *sql.Tx, table, columns, order string) (copied int, err error) {
	rows, err := from.QueryContext(ctx, fmt.Sprintf("SELECT %s FROM %s ORDER BY %s", columns, table, order))
	if err != nil {
		return 0, nil // nothing of the table can be read
	}
	defer func() { err = errors.Join(err, ignoreDamage(rows.Close())) }()
	values := make([]any, strings.Count(columns, ",")+1)
	into := make([]any, len(values))
	for i := range values {
		into[i] = &values[i]
	}
	insert := fmt.Sprintf("INSERT OR IGNORE INTO %s (%s) VALUES (?%s)", table, columns, strings.Repeat(", ?", len(values)-1))
	for rows.Next() {
		if rows.Scan(into...) != nil {
			return copied, nil
		}
		result, err := to.ExecContext(ctx, insert, values...)
		if err != nil {
			return copied, err
		}
		n, err := result.RowsAffected()
		if err != nil {
			return copied, err
		}
		copied += int(n)
	}
	return copied, nil
}

func ignoreDamage(err error) error {
	if damagedFile(err) {
		return nil
	}
	return err
}
