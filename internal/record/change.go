package record

import (
	"database/sql"
	"fmt"

	"github.com/containerd/errdefs"
)

const (
	// checkpointEvery is how many changes pass before the log is checkpointed.
	checkpointEvery = 1000
	// tightEvery is how many while the ballast is given up.
	tightEvery = 100
	// longLog is how many pages the log may hold before changes wait for a
	// checkpoint; a database that never rests gets no further otherwise.
	longLog = 16384
)

// turns is a lock that is taken in the order of asking. A sync.Mutex lets those
// that come pass those that wait, which then wait for milliseconds.
type turns chan struct{}

func (t turns) Lock()   { t <- struct{}{} }
func (t turns) Unlock() { <-t }

// exec runs one changing statement. It is not cut short by a caller's context:
// a change is made wholly or not at all.
func (s *Store) exec(stmt *sql.Stmt, args ...any) error {
	s.write.Lock()
	defer s.write.Unlock()
	err := s.withRoom(func() error {
		_, err := stmt.Exec(args...)
		return err
	})
	if damagedFile(err) {
		return fmt.Errorf("the record store %s is damaged; restart berth, which keeps what can be read of it: %w: %w", s.path, err, errdefs.ErrDataLoss)
	}
	if err != nil {
		return err
	}
	every := checkpointEvery
	if s.ballast.given.Load() {
		every = tightEvery
	}
	if s.changes++; s.changes >= every {
		s.changes = 0
		s.wantCheckpoint()
	}
	return nil
}

// wantCheckpoint has the log checkpointed soon.
func (s *Store) wantCheckpoint() {
	select {
	case s.checkpoint <- struct{}{}:
	default:
	}
}

// checkpoints copies the write-ahead log into the database when it has grown,
// beside the changes that go on, and makes the ballast again. It ends with
// Close.
func (s *Store) checkpoints() {
	defer close(s.done)
	for {
		select {
		case <-s.checkpoint:
		case <-s.stop:
			return
		}
		if err := s.copyLog(); err != nil {
			s.log.Warn("record store: checkpoint failed; it is tried again", "err", err)
		}
		s.ballast.restore()
	}
}

// copyLog copies the log into the database. Where it took all of it, the next
// change writes the log from its beginning and syncs that first; so this makes
// that change itself, one that changes nothing.
func (s *Store) copyLog() error {
	length, copied, err := s.copyBeside()
	if err != nil || copied < length && length < longLog {
		return err
	}
	s.write.Lock()
	defer s.write.Unlock()
	if copied < length {
		if _, _, err := s.copyBeside(); err != nil {
			return err
		}
	}
	return s.withRoom(func() error {
		_, err := s.db.Exec(fmt.Sprintf("PRAGMA user_version = %d", Version))
		return err
	})
}

// copyBeside copies what it can without keeping anyone from the database; it
// tells how many pages the log has and how many of them are copied.
func (s *Store) copyBeside() (length, copied int, err error) {
	var busy int
	err = s.side.QueryRow("PRAGMA wal_checkpoint(PASSIVE)").Scan(&busy, &length, &copied)
	return length, copied, err
}
