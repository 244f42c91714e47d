package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestNewLogger(t *testing.T) {
	var buf bytes.Buffer
	log, err := NewLogger(&buf, "warn", "json")
	if err != nil {
		t.Fatal(err)
	}
	log.Info("not this")
	log.Warn("this", "pod", "default/web")
	var line map[string]any
	if err := json.Unmarshal(buf.Bytes(), &line); err != nil {
		t.Fatalf("%q is not one line of JSON: %v", buf.String(), err)
	}
	if line["msg"] != "this" || line["pod"] != "default/web" || line["level"] != "WARN" {
		t.Errorf("line = %v", line)
	}

	buf.Reset()
	log, err = NewLogger(&buf, "debug", "text")
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("all", "step", "network")
	if got := buf.String(); !strings.Contains(got, "level=DEBUG msg=all step=network") {
		t.Errorf("line = %q", got)
	}
}

func TestNewLoggerRefuses(t *testing.T) {
	for _, c := range []struct{ level, format, want string }{
		{"loud", "text", `log level "loud" is not one of debug, info, warn, error`},
		{"info", "xml", `log format "xml" is not one of text, json`},
	} {
		_, err := NewLogger(io.Discard, c.level, c.format)
		if !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("NewLogger(%q, %q) = %v, want %q", c.level, c.format, err, c.want)
		}
	}
}

// scrape returns the lines of berth's own metrics.
func scrape(t *testing.T, m *Metrics) []string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	var lines []string
	for line := range strings.SplitSeq(w.Body.String(), "\n") {
		if strings.HasPrefix(line, "berth_") {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestMetrics(t *testing.T) {
	m := NewMetrics()
	end := m.BeginCall("RunPodSandbox")
	m.BeginCall("ListContainers")("OK")
	m.ObserveStep("RunPodSandbox", "network", 7*time.Millisecond, nil)
	m.ObserveStep("RunPodSandbox", "network", time.Second, errors.New("no address"))
	m.LostOutput(3)
	m.LostOutput(4)
	state := []Count{{"container", "running", 3}}
	m.CountObjects(func() []Count { return state })

	lines := scrape(t, m)
	for _, want := range []string{
		`berth_cri_calls_in_flight{method="RunPodSandbox"} 1`,
		`berth_cri_calls_in_flight{method="ListContainers"} 0`,
		`berth_cri_call_duration_seconds_count{code="OK",method="ListContainers"} 1`,
		`berth_step_duration_seconds_bucket{op="RunPodSandbox",step="network",le="0.005"} 0`,
		`berth_step_duration_seconds_bucket{op="RunPodSandbox",step="network",le="0.01"} 1`,
		`berth_step_duration_seconds_count{op="RunPodSandbox",step="network"} 2`,
		`berth_step_failures_total{op="RunPodSandbox",step="network"} 1`,
		`berth_objects{kind="container",state="running"} 3`,
		`berth_log_lost_bytes_total 7`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %s in\n%s", want, strings.Join(lines, "\n"))
		}
	}

	end("NotFound")
	state = nil
	lines = scrape(t, m)
	for _, want := range []string{
		`berth_cri_calls_in_flight{method="RunPodSandbox"} 0`,
		`berth_cri_call_duration_seconds_count{code="NotFound",method="RunPodSandbox"} 1`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("after the call: no line %s", want)
		}
	}
	if strings.Contains(strings.Join(lines, "\n"), "berth_objects{") {
		t.Error("objects that are gone are still counted")
	}
}

// Two daemons in one process share nothing.
func TestMetricsAreApart(t *testing.T) {
	a, b := NewMetrics(), NewMetrics()
	a.BeginCall("Version")("OK")
	if got := strings.Join(scrape(t, b), "\n"); strings.Contains(got, "Version") {
		t.Errorf("a call counted on one is seen on the other:\n%s", got)
	}
}

func TestNilMetrics(t *testing.T) {
	var m *Metrics
	m.BeginCall("Version")("OK")
	m.ObserveStep("op", "step", 0, nil)
	m.CountObjects(nil)
	m.LostOutput(1)
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 404 {
		t.Errorf("status %d, want 404", w.Code)
	}
}

func TestMetricsTogether(t *testing.T) {
	m := NewMetrics()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				m.BeginCall("Status")("OK")
				m.CountObjects(func() []Count { return nil })
			}
		})
	}
	for range 10 {
		scrape(t, m)
	}
	wg.Wait()
	if want := `berth_cri_call_duration_seconds_count{code="OK",method="Status"} 400`; !slices.Contains(scrape(t, m), want) {
		t.Errorf("no line %s", want)
	}
}
