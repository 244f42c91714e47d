package record

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// An Unfinished operation was begun and not ended.
type Unfinished struct {
	Op, Object, Step string
	Begun            time.Time
}

// Begin implements steps.Journal.
func (s *Store) Begin(op, object, step string) error {
	if err := s.exec(s.begin, op, object, step, time.Now().UnixNano()); err != nil {
		return fmt.Errorf("journal %s %s: %w", op, object, err)
	}
	return nil
}

// End implements steps.Journal.
func (s *Store) End(op, object string) error {
	if err := s.exec(s.end, op, object); err != nil {
		return fmt.Errorf("journal %s %s: %w", op, object, err)
	}
	return nil
}

// Unfinished lists what a daemon before this one left half done, oldest first.
func (s *Store) Unfinished(ctx context.Context) ([]Unfinished, error) {
	return unfinished(ctx, s.side)
}

func unfinished(ctx context.Context, db *sql.DB) ([]Unfinished, error) {
	rows, err := db.QueryContext(ctx, "SELECT op, object, step, begun FROM journal ORDER BY begun")
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	defer rows.Close()
	var all []Unfinished
	for rows.Next() {
		var u Unfinished
		var begun int64
		if err := rows.Scan(&u.Op, &u.Object, &u.Step, &begun); err != nil {
			return nil, fmt.Errorf("read journal: %w", err)
		}
		u.Begun = time.Unix(0, begun)
		all = append(all, u)
	}
	return all, rows.Err()
}
