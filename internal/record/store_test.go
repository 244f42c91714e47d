package record

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/testing/protocmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, path string) (*Store, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	s, err := Open(t.Context(), path, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, &log
}

func sandbox(id string) *Sandbox {
	return &Sandbox{
		ID: id, Handler: "berth", State: SandboxReady, CreatedAt: time.Unix(1, 2).UTC(), CgroupParent: "/berth/" + id, IPs: []string{"10.1.2.3"},
		Config: &runtime.PodSandboxConfig{Metadata: &runtime.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u", Attempt: 3}},
		Init:   &Process{PID: 7, Start: 9},
	}
}

func TestSurvivesReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s, _ := open(t, path)
	box := sandbox("abc")
	ctr := &Container{ID: "c1", SandboxID: "abc", State: ContainerCreated, Config: &runtime.ContainerConfig{Command: []string{"sh", "a=b"}}}
	for _, err := range []error{s.Sandboxes.Put(box), s.Containers.Put(ctr), s.Begin("Op", "abc", "one"), s.Begin("Op", "abc", "two"), s.Begin("Op", "gone", "x"), s.End("Op", "gone")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Containers.Update("c1", func(c *Container) { c.State, c.ExitCode = ContainerExited, 3 }); err != nil {
		t.Fatal(err)
	}
	if ctr.ExitCode != 0 {
		t.Error("Update changed the value that readers hold")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s, _ = open(t, path)
	got, err := s.Sandboxes.Get("abc")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(box, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	c, err := s.Containers.Resolve("c")
	if err != nil || c.ExitCode != 3 || c.Config.Command[1] != "a=b" {
		t.Errorf("%+v, %v", c, err)
	}
	unfinished, err := s.Unfinished(t.Context())
	if err != nil || len(unfinished) != 1 || unfinished[0].Step != "two" {
		t.Errorf("%+v, %v", unfinished, err)
	}
	if err := s.Sandboxes.Delete("abc"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sandboxes.Get("abc"); !errdefs.IsNotFound(err) {
		t.Errorf("err = %v", err)
	}
}

func TestDamagedRowIsSetAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s, _ := open(t, path)
	for _, id := range []string{"good", "bad", "swapped"} {
		if err := s.Sandboxes.Put(sandbox(id)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.db.Exec("UPDATE sandboxes SET body = x'7b22' WHERE id = 'bad'; UPDATE sandboxes SET body = (SELECT body FROM sandboxes WHERE id = 'good') WHERE id = 'swapped'"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, log := open(t, path)
	if n := len(s.Sandboxes.List()); n != 1 {
		t.Errorf("%d records are left", n)
	}
	var n int
	if err := s.db.QueryRow("SELECT count(*) FROM damaged WHERE source = 'sandboxes' AND reason <> ''").Scan(&n); err != nil || n != 2 {
		t.Errorf("%d damaged rows kept, %v", n, err)
	}
	for _, want := range []string{"sandbox=bad", "sandbox=swapped"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log does not name %s:\n%s", want, log)
		}
	}
}

func TestFileThatIsNoDatabaseIsSetAside(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "records.db")
	if err := os.WriteFile(path, bytes.Repeat([]byte("not a database. "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	s, log := open(t, path)
	if err := s.Sandboxes.Put(sandbox("x")); err != nil {
		t.Fatal(err)
	}
	aside, err := filepath.Glob(path + ".damaged-*")
	if err != nil || len(aside) == 0 || !strings.Contains(log.String(), "set aside") {
		t.Errorf("set aside: %v, %v, log %s", aside, err, log)
	}
}

// A page that is damaged costs the records on it alone, and those that only the
// log had are kept.
func TestDamagedDatabaseIsTakenOver(t *testing.T) {
	const boxes = 200
	killed, path := filepath.Join(t.TempDir(), "records.db"), filepath.Join(t.TempDir(), "records.db")
	s, _ := open(t, killed)
	for i := range boxes {
		if err := s.Sandboxes.Put(sandbox(fmt.Sprintf("%03d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.copyLog(), s.Begin("Op", "x", "s"), s.Sandboxes.Put(sandbox("late"))); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(killed)
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	at := bytes.Index(content, []byte(`"ID":"100"`)) / page * page
	copy(content[at:at+page], bytes.Repeat([]byte{0xff}, page))
	wal, err := os.ReadFile(killed + "-wal")
	if err := errors.Join(err, os.WriteFile(path, content, 0o600), os.WriteFile(path+"-wal", wal, 0o600)); err != nil {
		t.Fatal(err)
	}
	s, log := open(t, path)
	if n := len(s.Sandboxes.List()); n < boxes*3/4 || n > boxes {
		t.Errorf("%d of %d records are left; log:\n%s", n, boxes+1, log)
	}
	if _, err := s.Sandboxes.Get("late"); err != nil {
		t.Error(err)
	}
	if u, err := s.Unfinished(t.Context()); err != nil || len(u) != 1 {
		t.Errorf("journal: %v, %v", u, err)
	}
	aside, err := filepath.Glob(path + ".damaged-*[0-9]")
	if err != nil || len(aside) != 1 {
		t.Fatalf("set aside: %v, %v", aside, err)
	}
	if err := s.Sandboxes.Put(sandbox("new")); err != nil {
		t.Error(err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s, _ := open(t, path)
	if _, err := s.db.Exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := Open(context.Background(), path, slog.New(slog.DiscardHandler))
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("err = %v", err)
	}
}

// A row of a newer berth is not damaged; nor is anything set aside beside it.
func TestNewerRowIsRefused(t *testing.T) {
	for _, table := range []string{"sandboxes", "containers"} {
		t.Run(table, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "records.db")
			s, _ := open(t, path)
			for _, err := range []error{
				s.Sandboxes.Put(sandbox("new")), s.Sandboxes.Put(sandbox("bad")),
				s.Containers.Put(&Container{ID: "new", Config: &runtime.ContainerConfig{}}),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			// Its State has another type.
			if _, err := s.db.Exec("UPDATE sandboxes SET body = x'7b22' WHERE id = 'bad'; UPDATE " + table + ` SET body = '{"v":2,"ID":"new","State":{}}' WHERE id = 'new'`); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			_, err := Open(t.Context(), path, slog.New(slog.DiscardHandler))
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "newer berth") {
				t.Errorf("err = %v", err)
			}
			db, err := openConn(path)
			if err != nil {
				t.Fatal(err)
			}
			var rows, damaged int
			err = db.QueryRow("SELECT (SELECT count(*) FROM sandboxes) + (SELECT count(*) FROM containers), (SELECT count(*) FROM damaged)").Scan(&rows, &damaged)
			if err != nil || rows != 3 || damaged != 0 {
				t.Errorf("%d rows, %d set aside, %v", rows, damaged, err)
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	s, _ := open(t, filepath.Join(t.TempDir(), "records.db"))
	for _, id := range []string{"aa1", "aa2", "b", "bb"} {
		if err := s.Sandboxes.Put(sandbox(id)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		prefix, want string
		kind         func(error) bool
	}{
		{"aa1", "aa1", nil}, {"b", "b", nil}, {"bb", "bb", nil},
		{"aa", "", errdefs.IsInvalidArgument}, {"c", "", errdefs.IsNotFound}, {"", "", errdefs.IsNotFound},
	} {
		got, err := s.Sandboxes.Resolve(tc.prefix)
		if tc.kind != nil {
			if !tc.kind(err) {
				t.Errorf("%q: %v", tc.prefix, err)
			}
		} else if err != nil || got.ID != tc.want {
			t.Errorf("%q: %v, %v", tc.prefix, got, err)
		}
	}
}

func TestParallelChangesAndCheckpoints(t *testing.T) {
	s, _ := open(t, filepath.Join(t.TempDir(), "records.db"))
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range checkpointEvery {
				id := fmt.Sprintf("%d-%d", w, i%10)
				if err := s.Sandboxes.Put(sandbox(id)); err != nil {
					t.Error(err)
				}
				if err := s.Begin("Op", id, "s"); err != nil {
					t.Error(err)
				}
				s.Sandboxes.List()
			}
		})
	}
	wg.Wait()
	if n := len(s.Sandboxes.List()); n != 40 {
		t.Errorf("%d records", n)
	}
}

// A checkpoint makes the first write of the log's new beginning itself, and
// its fsync with it.
func TestCheckpointBeginsTheLogAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s, _ := open(t, path)
	salt := func() []byte { // of the log's header; another one for each beginning
		t.Helper()
		header, err := os.ReadFile(path + "-wal")
		if err != nil || len(header) < 32 {
			t.Fatalf("%d bytes, %v", len(header), err)
		}
		return header[16:24]
	}
	if err := s.Begin("Op", "x", "s"); err != nil {
		t.Fatal(err)
	}
	before := salt()
	if err := s.copyLog(); err != nil {
		t.Fatal(err)
	}
	after := salt()
	if bytes.Equal(before, after) {
		t.Error("the next change begins the log again, and waits for the fsync")
	}
	if err := s.Begin("Op", "x", "t"); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(after, salt()) {
		t.Error("a change began the log again")
	}
}

// Changes of the journal and of both tables wait for each other in the store's
// own lock.
func TestChangesTakeTurns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(t.Context(), path, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		var done atomic.Int32
		s.write.Lock()
		for _, change := range []func() error{
			func() error { return s.Begin("Op", "x", "s") },
			func() error { return s.Sandboxes.Put(sandbox("x")) },
			func() error { return s.Containers.Put(&Container{ID: "c", Config: &runtime.ContainerConfig{}}) },
			func() error { return s.Sandboxes.Delete("x") },
			func() error { return s.End("Op", "x") },
		} {
			go func() {
				if err := change(); err != nil {
					t.Error(err)
				}
				done.Add(1)
			}()
		}
		synctest.Wait()
		if n := done.Load(); n != 0 {
			t.Errorf("%d changes did not wait", n)
		}
		s.write.Unlock()
		synctest.Wait()
		if n := done.Load(); n != 5 {
			t.Errorf("%d changes are done", n)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
