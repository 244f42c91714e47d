package steps

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Journal that keeps a readable account.
type memory struct{ lines []string }

func (j *memory) Begin(op, object, step string) error {
	j.lines = append(j.lines, "begin "+step)
	return nil
}
func (j *memory) End(op, object string) error { j.lines = append(j.lines, "end"); return nil }

func run(t *testing.T, failpoints, undoFails string) ([]string, error) {
	t.Helper()
	f, err := ParseFailpoints(failpoints)
	if err != nil {
		t.Fatal(err)
	}
	j := &memory{}
	r := New(Options{Journal: j, Log: slog.New(slog.DiscardHandler), Failpoints: f})
	step := func(name string) Step {
		return Step{
			Name: name,
			Do:   func(context.Context) error { j.lines = append(j.lines, "do "+name); return nil },
			Undo: func(context.Context) error {
				j.lines = append(j.lines, "undo "+name)
				if name == undoFails {
					return errors.New("stuck")
				}
				return nil
			},
		}
	}
	err = r.Run(t.Context(), "Op", "x", step("a"), step("b"), Step{Name: "c", Do: func(context.Context) error { return nil }})
	return j.lines, err
}

func TestRun(t *testing.T) {
	for _, tc := range []struct {
		name, failpoints, undoFails, want, err string
	}{
		{name: "all done", want: "begin a,do a,begin b,do b,begin c,end"},
		{name: "fails before do", failpoints: "Op/b=error", err: "step b: failpoint",
			want: "begin a,do a,begin b,undo b,undo a,end"},
		{name: "fails after do", failpoints: "Op/a:after=error", err: "step a: failpoint",
			want: "begin a,do a,undo a,end"},
		{name: "panics", failpoints: "Op/b=panic", err: "step b: panic: failpoint Op/b",
			want: "begin a,do a,begin b,undo b,undo a,end"},
		{name: "step without undo", failpoints: "Op/c=error", err: "step c: failpoint",
			want: "begin a,do a,begin b,do b,begin c,undo b,undo a,end"},
		{name: "undo fails: the steps before it stay for the next try, the journal keeps the entry",
			failpoints: "Op/b=error", undoFails: "b", err: "undo step b: stuck",
			want: "begin a,do a,begin b,undo b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			lines, err := run(t, tc.failpoints, tc.undoFails)
			if diff := cmp.Diff(tc.want, strings.Join(lines, ",")); diff != "" {
				t.Error(diff)
			}
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("err = %v, want %q", err, tc.err)
			}
		})
	}
}

// full is a Journal that cannot be written.
type full struct{}

func (full) Begin(op, object, step string) error { return errors.New("disk full") }
func (full) End(op, object string) error         { return errors.New("disk full") }

func TestJournalThatCannotBeWritten(t *testing.T) {
	nothing := func(context.Context) error { return nil }
	for _, tc := range []struct {
		name  string
		steps []Step
		did   string
		fails bool
	}{
		{name: "with an undo: not begun", steps: []Step{{Name: "a"}, {Name: "b", Undo: nothing}}, fails: true},
		{name: "without: goes on", steps: []Step{{Name: "a"}, {Name: "b"}}, did: "ab"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var did, log strings.Builder
			for i, step := range tc.steps {
				tc.steps[i].Do = func(context.Context) error { did.WriteString(step.Name); return nil }
			}
			r := New(Options{Journal: full{}, Log: slog.New(slog.NewTextHandler(&log, nil))})
			err := r.Run(t.Context(), "Op", "x", tc.steps...)
			if did.String() != tc.did || (err != nil) != tc.fails {
				t.Errorf("did %q, err = %v", &did, err)
			}
			if !strings.Contains(log.String(), "disk full") {
				t.Errorf("not logged:\n%s", &log)
			}
		})
	}
}

func TestParseFailpointsRefuses(t *testing.T) {
	for _, bad := range []string{"x", "a/b", "a=error", "a/b=burn", "a/b=delay:soon"} {
		if _, err := ParseFailpoints(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestFlightsShareOneRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFlights[int](context.Background(), slog.New(slog.DiscardHandler))
		finish := make(chan struct{})
		var runs atomic.Int32
		work := func(context.Context) (int, error) {
			runs.Add(1)
			<-finish
			return 7, nil
		}
		gaveUp, cancel := context.WithCancel(context.Background())
		go func() {
			if _, err := f.Do(gaveUp, "k", work); !errors.Is(err, context.Canceled) {
				t.Errorf("err = %v", err)
			}
		}()
		synctest.Wait()
		cancel()
		synctest.Wait()
		go func() {
			if v, err := f.Do(context.Background(), "k", work); v != 7 || err != nil {
				t.Errorf("got %d, %v", v, err)
			}
		}()
		synctest.Wait()
		close(finish)
		f.Wait()
		synctest.Wait()
		if n := runs.Load(); n != 1 {
			t.Errorf("%d runs", n)
		}
	})
}

// What panics is an error of one line for the client; the log has the stack.
func TestAPanicIsAnError(t *testing.T) {
	boom := func() { panic("boom\nand more") }
	var log strings.Builder
	logger := slog.New(slog.NewTextHandler(&log, nil))
	r := New(Options{Journal: &memory{}, Log: logger})
	f := NewFlights[int](context.Background(), logger)
	for name, run := range map[string]func() error{
		"do": func() error {
			return r.Run(t.Context(), "Op", "x", Step{Name: "s", Do: func(context.Context) error { boom(); return nil }})
		},
		"undo": func() error {
			return r.Undo(t.Context(), "Op", "x", Step{Name: "s", Undo: func(context.Context) error { boom(); return nil }})
		},
		"flight": func() error {
			defer f.Wait()
			_, err := f.Do(t.Context(), "k", func(context.Context) (int, error) { boom(); return 0, nil })
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			log.Reset()
			err := run()
			if err == nil || !strings.Contains(err.Error(), "panic: boom") || strings.Contains(err.Error(), "\n") {
				t.Errorf("err = %v", err)
			}
			if !strings.Contains(log.String(), "steps_test.go") {
				t.Errorf("no stack in the log:\n%s", &log)
			}
		})
	}
}

func TestSlotsGiveUpWithTheContext(t *testing.T) {
	var s Slots
	release, err := s.Acquire(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Acquire(ctx, "k"); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	other, err := s.Acquire(t.Context(), "other")
	if err != nil {
		t.Fatal(err)
	}
	other()
	release()
	again, err := s.Acquire(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	again()
	if len(s.held) != 0 {
		t.Errorf("%d slots kept", len(s.held))
	}
}
