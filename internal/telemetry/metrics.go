package telemetry

import (
	"net/http"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"berth/internal/version"
)

// buckets go from a fast read to a long pull, in seconds.
var buckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

// Metrics count what one daemon does, in a registry of its own.
type Metrics struct {
	registry *prometheus.Registry
	calls    *prometheus.HistogramVec
	flying   *prometheus.GaugeVec
	steps    *prometheus.HistogramVec
	failures *prometheus.CounterVec
	lost     prometheus.Counter
	objects  objects
}

// A Count is how many objects of a kind ("sandbox", "container", "image") are
// in a state ("ready", "running").
type Count struct {
	Kind, State string
	N           int
}

// NewMetrics returns Metrics that have counted nothing yet.
func NewMetrics() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "berth_cri_call_duration_seconds", Help: "Time of CRI calls, by method and gRPC code.", Buckets: buckets,
		}, []string{"method", "code"}),
		flying: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "berth_cri_calls_in_flight", Help: "CRI calls under way, by method.",
		}, []string{"method"}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "berth_step_duration_seconds", Help: "Time of the steps of mutations, by operation and step.", Buckets: buckets,
		}, []string{"op", "step"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_step_failures_total", Help: "Steps of mutations that failed, by operation and step.",
		}, []string{"op", "step"}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_log_lost_bytes_total", Help: "Bytes of containers' output that a log file did not take, as where a disk is full.",
		}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "berth_build_info", Help: "Always 1; the labels say which berth this is.",
		ConstLabels: prometheus.Labels{"version": version.Version(), "go": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(m.calls, m.flying, m.steps, m.failures, m.lost, &m.objects, build,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// BeginCall counts a CRI call as under way. The returned function ends it
// with its gRPC code ("OK", "NotFound") and is called once.
func (m *Metrics) BeginCall(method string) (end func(code string)) {
	if m == nil {
		return func(string) {}
	}
	began := time.Now()
	flying := m.flying.WithLabelValues(method)
	flying.Inc()
	return func(code string) {
		flying.Dec()
		m.calls.WithLabelValues(method, code).Observe(time.Since(began).Seconds())
	}
}

// ObserveStep counts a step of a mutation; it fits steps.Options.Observe.
func (m *Metrics) ObserveStep(op, step string, took time.Duration, err error) {
	if m == nil {
		return
	}
	m.steps.WithLabelValues(op, step).Observe(took.Seconds())
	if err != nil {
		m.failures.WithLabelValues(op, step).Inc()
	}
}

// CountObjects sets what counts the objects there are. It is called each time
// that metrics are fetched, from any goroutine, and gives a kind and state at
// most once.
func (m *Metrics) CountObjects(count func() []Count) {
	if m != nil {
		m.objects.count.Store(&count)
	}
}

// LostOutput counts bytes of output that a log file did not take.
func (m *Metrics) LostOutput(bytes int) {
	if m != nil {
		m.lost.Add(float64(bytes))
	}
}

// Handler serves the metrics in Prometheus's formats.
func (m *Metrics) Handler() http.Handler {
	if m == nil {
		return http.NotFoundHandler()
	}
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})
}

// objects is a collector that counts when it is asked.
type objects struct {
	count atomic.Pointer[func() []Count]
}

var objectsDesc = prometheus.NewDesc("berth_objects", "Objects there are, by kind and state.", []string{"kind", "state"}, nil)

// Describe implements prometheus.Collector.
func (*objects) Describe(ch chan<- *prometheus.Desc) { ch <- objectsDesc }

// Collect implements prometheus.Collector.
func (o *objects) Collect(ch chan<- prometheus.Metric) {
	count := o.count.Load()
	if count == nil {
		return
	}
	for _, c := range (*count)() {
		ch <- prometheus.MustNewConstMetric(objectsDesc, prometheus.GaugeValue, float64(c.N), c.Kind, c.State)
	}
}
