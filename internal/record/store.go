// Package record is berth's one durable truth: which sandboxes and containers
// there are, what was asked for them, what became of them, and which operation
// is under way. What the machine holds (namespaces, mounts, snapshots, tasks)
// is derived from the IDs in it.
//
// Invariants:
//   - A change is durable against a killed process, and seen by readers, when
//     the call returns; a power cut loses the newest changes, never consistency
//     (SQLite, WAL, synchronous=NORMAL). The log is checkpointed by a goroutine
//     of its own, which takes the fsyncs; a change waits for one only where it
//     meets the log's new beginning, once in checkpointEvery changes.
//   - What readers get is immutable. A change makes a new value.
//   - A row that cannot be read is set aside in the table damaged with its
//     reason and never stops the daemon, nor does a damaged file, of which all
//     that can be read is taken over; FORMAT.md describes the tables. What
//     a newer berth wrote is no damage: Open fails and changes nothing.
//
// Concurrency: a Store is safe for concurrent use. Reads come from memory and
// wait for no disk. Changes follow each other on one connection.
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
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // pure Go, so that the daemon stays one static binary
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

// A Store is an open record store. One process opens it at a time; the
// daemon's lock on its root sees to that.
type Store struct {
	Sandboxes  *Table[Sandbox]
	Containers *Table[Container]

	db   *sql.DB // the connection of the changes
	side *sql.DB // the connection of the checkpoints, and of reading the journal
	path string
	// file is the database. It is closed after the connections, for a close
	// drops all locks that the process has on a file.
	file    *os.File
	ballast *ballast
	log     *slog.Logger

	begin, end *sql.Stmt

	// write lets one change at a time at db, in the order of asking; SQLite's own
	// lock is waited for by sleeping and looking again. It guards changes.
	write   turns
	changes int

	checkpoint chan struct{}
	stop, done chan struct{}
	closeOnce  sync.Once
	closeErr   error
}

// Open opens the store at path, made where missing, and reads every record. A
// file that is damaged is set aside beside itself, and what can be read of it
// is taken over.
//
// Errors: ErrFailedPrecondition where a newer berth wrote it, or it cannot be
// written; ErrResourceExhausted on a full disk. Neither changes anything.
func Open(ctx context.Context, path string, log *slog.Logger) (*Store, error) {
	s := &Store{
		path: path, log: log, ballast: newBallast(path+".ballast", log),
		checkpoint: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}), write: make(turns, 1),
	}
	err := s.withRoom(func() error { return s.start(ctx, "") })
	if damagedFile(err) {
		aside := fmt.Sprintf("%s.damaged-%d", path, time.Now().Unix())
		log.Error("the record store is damaged; it is set aside, and what can be read of it is taken over", "file", path, "set aside as", aside, "err", err)
		if err := setAside(path, aside); err != nil {
			return nil, fmt.Errorf("record store %s: set aside: %w", path, err)
		}
		err = s.withRoom(func() error { return s.start(ctx, aside) })
	}
	if errors.Is(err, unix.EROFS) {
		err = fmt.Errorf("%w; the kernel may have made it so after an error (see dmesg): repair it and mount it writable: %w", err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("record store %s: %w", path, err)
	}
	s.ballast.restore()
	go s.checkpoints()
	return s, nil
}

// start opens the database, takes over what can be read of a damaged one, if
// there is one, and reads it; where it fails nothing stays open.
func (s *Store) start(ctx context.Context, damaged string) error {
	err := s.connect(ctx)
	if err == nil && damaged != "" {
		var rows int
		rows, err = s.salvage(ctx, damaged)
		s.log.Error("taken over from the damaged record store; pods that are not in it will be made again", "rows", rows, "err", err)
	}
	if err == nil {
		err = s.load(ctx)
	}
	if err != nil {
		return errors.Join(err, s.disconnect())
	}
	return nil
}

func (s *Store) connect(ctx context.Context) (err error) {
	if s.file, err = os.OpenFile(s.path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if s.db, err = openConn(s.path); err != nil {
		return err
	}
	if err := migrate(ctx, s.db); err != nil {
		return err
	}
	s.side, err = openConn(s.path)
	return err
}

// openConn gives a pool of one connection.
func openConn(path string) (*sql.DB, error) {
	pragmas := url.Values{"_pragma": {"journal_mode(wal)", "synchronous(normal)", "busy_timeout(10000)", "wal_autocheckpoint(0)"}, "_txlock": {"immediate"}}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: pragmas.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

func (s *Store) disconnect() error {
	var errs []error
	for _, db := range []*sql.DB{s.side, s.db} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if s.file != nil {
		errs = append(errs, s.file.Close())
	}
	s.side, s.db, s.file = nil, nil, nil
	return errors.Join(errs...)
}

func migrate(ctx context.Context, db *sql.DB) error {
	var version int
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version > Version {
		return fmt.Errorf("schema version %d is not %d: it was written by a newer berth; install that version, or move the file away after draining the node: %w", version, Version, errdefs.ErrFailedPrecondition)
	}
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return fmt.Errorf("%w: %s", errDamaged, verdict)
	}
	if version == Version {
		return nil
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, schema); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// load reads all before it changes anything: a newer berth's records stay as
// they are.
func (s *Store) load(ctx context.Context) (err error) {
	s.Sandboxes, s.Containers = newTable(s, "sandboxes", sandboxCodec), newTable(s, "containers", containerCodec)
	boxes, err := s.Sandboxes.read(ctx)
	if err != nil {
		return err
	}
	containers, err := s.Containers.read(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(s.Sandboxes.begin(ctx, boxes), s.Containers.begin(ctx, containers)); err != nil {
		return err
	}
	if s.begin, err = s.db.PrepareContext(ctx, "INSERT OR REPLACE INTO journal (op, object, step, begun) VALUES (?, ?, ?, ?)"); err != nil {
		return err
	}
	s.end, err = s.db.PrepareContext(ctx, "DELETE FROM journal WHERE op = ? AND object = ?")
	return err
}

// Close ends the store; no call is under way or comes after. Twice is safe.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.stop)
		<-s.done
		err := s.withRoom(func() error {
			_, err := s.side.Exec("PRAGMA wal_checkpoint(TRUNCATE)")
			return err
		})
		s.closeErr = errors.Join(err, s.disconnect())
	})
	return s.closeErr
}
