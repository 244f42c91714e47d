// Package record is berth's one durable truth: which sandboxes and containers
// there are, what was asked for them, what became of them, and which operation
// is under way. What the machine holds (namespaces, mounts, snapshots, tasks)
// is derived from the IDs in it.
//
// Invariants:
//   - A change is durable against a killed process, and seen by readers, when
//     the call returns; a power cut loses the newest changes, never consistency
//     (SQLite, WAL, synchronous=NORMAL). No change waits for an fsync: the log
//     is checkpointed by a goroutine of its own.
//   - What readers get is immutable. A change makes a new value.
//   - A row that cannot be read is set aside in the table damaged with its
//     reason and never stops the daemon; FORMAT.md describes the tables.
//
// Concurrency: a Store is safe for concurrent use. Reads come from memory and
// wait for no disk. Changes of one table follow each other.
package record

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"modernc.org/sqlite" // pure Go, so that the daemon stays one static binary
	sqlite3 "modernc.org/sqlite/lib"
)

// Version is the schema that this package reads and writes.
const Version = 1

const schema = `
CREATE TABLE sandboxes  (id TEXT PRIMARY KEY, body BLOB NOT NULL, config BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE containers (id TEXT PRIMARY KEY, body BLOB NOT NULL, config BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE journal    (op TEXT NOT NULL, object TEXT NOT NULL, step TEXT NOT NULL, begun INTEGER NOT NULL,
                         PRIMARY KEY (op, object)) WITHOUT ROWID;
CREATE TABLE damaged    (source TEXT NOT NULL, id TEXT NOT NULL, reason TEXT NOT NULL, found INTEGER NOT NULL,
                         body BLOB, config BLOB);
PRAGMA user_version = 1;`

// checkpointEvery is how many changes pass before the log is checkpointed.
const checkpointEvery = 1000

// A Store is an open record store. One process opens it at a time; the
// daemon's lock on its root sees to that.
type Store struct {
	Sandboxes  *Table[Sandbox]
	Containers *Table[Container]

	db  *sql.DB
	log *slog.Logger

	begin, end *sql.Stmt

	changes    atomic.Int64
	checkpoint chan struct{}
	done       chan struct{}
	closeOnce  sync.Once
	closeErr   error
}

// Open opens the store at path, made where missing, and reads every record. A
// file that is no database is set aside beside itself.
func Open(ctx context.Context, path string, log *slog.Logger) (*Store, error) {
	db, err := openDB(ctx, path)
	if damagedFile(err) {
		aside := fmt.Sprintf("%s.damaged-%d", path, time.Now().Unix())
		log.Error("the record store cannot be read; it is set aside and an empty one is used: the pods of this node will be made again",
			"file", path, "set aside as", aside, "err", err)
		if err := setAside(path, aside); err != nil {
			return nil, fmt.Errorf("record store %s: set aside: %w", path, err)
		}
		db, err = openDB(ctx, path)
	}
	if err != nil {
		return nil, fmt.Errorf("record store %s: %w", path, err)
	}
	s := &Store{db: db, log: log, checkpoint: make(chan struct{}, 1), done: make(chan struct{})}
	if err := s.load(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("record store %s: %w", path, err), db.Close())
	}
	go s.checkpoints()
	return s, nil
}

func openDB(ctx context.Context, path string) (*sql.DB, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := file.Close(); err != nil {
		return nil, err
	}
	pragmas := url.Values{"_pragma": {"journal_mode(wal)", "synchronous(normal)", "busy_timeout(10000)", "wal_autocheckpoint(0)"}, "_txlock": {"immediate"}}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: pragmas.Encode()}).String())
	if err != nil {
		return nil, err
	}
	// One connection for changes, one for the checkpoints beside them.
	db.SetMaxOpenConns(2)
	if err := migrate(ctx, db); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func migrate(ctx context.Context, db *sql.DB) error {
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return fmt.Errorf("%w: %s", errDamaged, verdict)
	}
	var version int
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	switch version {
	case Version:
		return nil
	case 0:
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, schema); err != nil {
			return errors.Join(err, tx.Rollback())
		}
		return tx.Commit()
	}
	return fmt.Errorf("schema version %d is not %d: it was written by a newer berth; install that version, or move the file away after draining the node: %w", version, Version, errdefs.ErrFailedPrecondition)
}

var errDamaged = errors.New("damaged")

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

func (s *Store) load(ctx context.Context) (err error) {
	if s.Sandboxes, err = loadTable(ctx, s, "sandboxes", sandboxCodec); err != nil {
		return err
	}
	if s.Containers, err = loadTable(ctx, s, "containers", containerCodec); err != nil {
		return err
	}
	if s.begin, err = s.db.PrepareContext(ctx, "INSERT OR REPLACE INTO journal (op, object, step, begun) VALUES (?, ?, ?, ?)"); err != nil {
		return err
	}
	s.end, err = s.db.PrepareContext(ctx, "DELETE FROM journal WHERE op = ? AND object = ?")
	return err
}

// exec runs one changing statement. It is not cut short by a caller's context:
// a change is made wholly or not at all.
func (s *Store) exec(stmt *sql.Stmt, args ...any) error {
	if _, err := stmt.Exec(args...); err != nil {
		return err
	}
	if s.changes.Add(1)%checkpointEvery == 0 {
		select {
		case s.checkpoint <- struct{}{}:
		default:
		}
	}
	return nil
}

// checkpoints copies the write-ahead log into the database when it has grown,
// beside the changes that go on. It ends with Close.
func (s *Store) checkpoints() {
	defer close(s.done)
	for range s.checkpoint {
		if _, err := s.db.Exec("PRAGMA wal_checkpoint(PASSIVE)"); err != nil {
			s.log.Warn("record store: checkpoint failed; it is tried again", "err", err)
		}
	}
}

// Close ends the store; no call is under way or comes after. Twice is safe.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.checkpoint)
		<-s.done
		_, err := s.db.Exec("PRAGMA wal_checkpoint(TRUNCATE)")
		s.closeErr = errors.Join(err, s.db.Close())
	})
	return s.closeErr
}
