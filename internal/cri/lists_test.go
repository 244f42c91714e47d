package cri

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/container"
	"berth/internal/record"
	"berth/internal/sandbox"
)

// listServer is a server of which only the lists work.
func listServer(t testing.TB, pods int) *Server {
	t.Helper()
	store, err := record.Open(t.Context(), t.TempDir()+"/records.db", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	for i := range pods {
		put(t, store, i, record.ContainerRunning)
	}
	return New(Options{Store: store})
}

func put(t testing.TB, store *record.Store, i int, state record.ContainerState) {
	t.Helper()
	labels := map[string]string{"n": fmt.Sprint(i), "even": fmt.Sprint(i%2 == 0)}
	box := &record.Sandbox{ID: fmt.Sprintf("p%03d", i), State: record.SandboxReady, Config: goodSandbox(), CreatedAt: time.Unix(int64(i), 0)}
	box.Config.Labels = labels
	c := &record.Container{
		ID: fmt.Sprintf("c%03d", i), SandboxID: box.ID, State: state, CreatedAt: box.CreatedAt, ImageName: "image",
		Config: &runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: "name"}, Labels: labels, Annotations: map[string]string{"a": strings.Repeat("b", 20)}},
	}
	if err := store.Sandboxes.Put(box); err != nil {
		t.Fatal(err)
	}
	if err := store.Containers.Put(c); err != nil {
		t.Fatal(err)
	}
}

// received is a response as a client gets it.
func received[M proto.Message](t testing.TB, sent M, into M) M {
	t.Helper()
	wire, err := proto.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(wire, into); err != nil {
		t.Fatal(err)
	}
	if len(into.ProtoReflect().GetUnknown()) > 0 {
		t.Error("a part of the response is not understood")
	}
	return into
}

func containersOf(t testing.TB, s *Server, filter *runtime.ContainerFilter) []*runtime.Container {
	t.Helper()
	resp, err := s.ListContainers(t.Context(), &runtime.ListContainersRequest{Filter: filter})
	if err != nil {
		t.Fatal(err)
	}
	return received(t, resp, new(runtime.ListContainersResponse)).Containers
}

func sandboxesOf(t testing.TB, s *Server, filter *runtime.PodSandboxFilter) []*runtime.PodSandbox {
	t.Helper()
	resp, err := s.ListPodSandbox(t.Context(), &runtime.ListPodSandboxRequest{Filter: filter})
	if err != nil {
		t.Fatal(err)
	}
	return received(t, resp, new(runtime.ListPodSandboxResponse)).Items
}

// Lists are what the records say, the newest first, after each change too.
func TestListsFollowTheRecords(t *testing.T) {
	s := listServer(t, 5)
	check := func() {
		t.Helper()
		var want []*runtime.Container
		for _, c := range s.Store.Containers.List() {
			if container.Shown(c) {
				want = append(want, container.Summary(c))
			}
		}
		slices.SortFunc(want, func(a, b *runtime.Container) int { return cmp.Compare(b.CreatedAt, a.CreatedAt) })
		if diff := gocmp.Diff(want, containersOf(t, s, nil), protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
		var boxes []*runtime.PodSandbox
		for _, box := range s.Store.Sandboxes.List() {
			if sandbox.Shown(box) {
				boxes = append(boxes, sandbox.Summary(box))
			}
		}
		slices.SortFunc(boxes, func(a, b *runtime.PodSandbox) int { return cmp.Compare(b.CreatedAt, a.CreatedAt) })
		if diff := gocmp.Diff(boxes, sandboxesOf(t, s, nil), protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	}
	check()
	check()
	put(t, s.Store, 2, record.ContainerExited)
	put(t, s.Store, 3, record.ContainerCreating)
	check()
	for _, err := range []error{s.Store.Containers.Delete("c004"), s.Store.Sandboxes.Delete("p004")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	check()
	if len(s.containers.byID) > 4 || len(s.sandboxes.byID) != 4 {
		t.Errorf("entries of what is no more are kept: %d, %d", len(s.containers.byID), len(s.sandboxes.byID))
	}
	for _, err := range []error{s.Store.Containers.Delete("c003"), s.Store.Containers.Delete("c002"), s.Store.Containers.Delete("c001"), s.Store.Containers.Delete("c000")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	check()
	if len(s.containers.byID) != 0 {
		t.Errorf("%d entries are kept", len(s.containers.byID))
	}
}

func TestListFilters(t *testing.T) {
	s := listServer(t, 4)
	put(t, s.Store, 1, record.ContainerExited)
	state := func(c runtime.ContainerState) *runtime.ContainerStateValue {
		return &runtime.ContainerStateValue{State: c}
	}
	for _, test := range []struct {
		filter *runtime.ContainerFilter
		want   string
	}{
		{nil, "c003 c002 c001 c000"},
		{&runtime.ContainerFilter{Id: "c00"}, "c003 c002 c001 c000"},
		{&runtime.ContainerFilter{Id: "c002"}, "c002"},
		{&runtime.ContainerFilter{PodSandboxId: "p001"}, "c001"},
		{&runtime.ContainerFilter{State: state(runtime.ContainerState_CONTAINER_EXITED)}, "c001"},
		{&runtime.ContainerFilter{State: state(runtime.ContainerState_CONTAINER_RUNNING), LabelSelector: map[string]string{"even": "false"}}, "c003"},
		{&runtime.ContainerFilter{Id: "none"}, ""},
	} {
		var have []string
		for _, c := range containersOf(t, s, test.filter) {
			have = append(have, c.Id)
		}
		if diff := gocmp.Diff(test.want, strings.Join(have, " ")); diff != "" {
			t.Errorf("%v: %s", test.filter, diff)
		}
	}
	notReady := &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_NOTREADY}
	for _, test := range []struct {
		filter *runtime.PodSandboxFilter
		want   int
	}{
		{nil, 4},
		{&runtime.PodSandboxFilter{Id: "p003"}, 1},
		{&runtime.PodSandboxFilter{State: notReady}, 0},
		{&runtime.PodSandboxFilter{LabelSelector: map[string]string{"even": "true"}}, 2},
	} {
		if have := sandboxesOf(t, s, test.filter); len(have) != test.want {
			t.Errorf("%v: %v", test.filter, have)
		}
	}
}

// The number by which entries are put into responses is the API's.
func TestListedField(t *testing.T) {
	for name, m := range map[string]proto.Message{
		"containers": &runtime.ListContainersResponse{}, "items": &runtime.ListPodSandboxResponse{},
	} {
		checkListed(t, name, m)
	}
	checkListed(t, "containers", &runtime.StreamContainersResponse{})
	checkListed(t, "pod_sandboxes", &runtime.StreamPodSandboxesResponse{})
	checkListed(t, "pod_metrics", &runtime.ListPodSandboxMetricsResponse{})
	checkListed(t, "pod_sandbox_metrics", &runtime.StreamPodSandboxMetricsResponse{})
}

func checkListed(t *testing.T, name string, m proto.Message) {
	t.Helper()
	f := m.ProtoReflect().Descriptor().Fields().ByNumber(listed)
	if f == nil || string(f.Name()) != name || !f.IsList() {
		t.Errorf("%T: field %d is %v, not %s", m, listed, f, name)
	}
}

// A collector is the client's side of a stream.
type collector[M any] struct {
	grpc.ServerStream
	ctx   context.Context
	parts []*M
	err   error
}

func (c *collector[M]) Context() context.Context { return c.ctx }

func (c *collector[M]) Send(m *M) error {
	c.parts = append(c.parts, m)
	return c.err
}

// A stream has every entry once, in responses of a bounded size.
func TestStreams(t *testing.T) {
	s := listServer(t, 20)
	big := strings.Repeat("x", maxBatch/4)
	for i := range 10 {
		_, err := s.Store.Containers.Update(fmt.Sprintf("c%03d", i), func(c *record.Container) { c.ImageRef = big })
		if err != nil {
			t.Fatal(err)
		}
	}
	c := &collector[runtime.StreamContainersResponse]{ctx: t.Context()}
	if err := s.StreamContainers(&runtime.StreamContainersRequest{}, c); err != nil {
		t.Fatal(err)
	}
	var all []*runtime.Container
	for _, part := range c.parts {
		if n := proto.Size(part); n > maxBatch {
			t.Errorf("a response of %d bytes", n)
		}
		got := received(t, part, new(runtime.StreamContainersResponse)).Containers
		if len(got) == 0 {
			t.Error("a response without an entry")
		}
		all = append(all, got...)
	}
	if diff := gocmp.Diff(containersOf(t, s, nil), all, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if n := len(c.parts); n < 3 || n > 5 {
		t.Errorf("%d responses", n)
	}

	boxes := &collector[runtime.StreamPodSandboxesResponse]{ctx: t.Context()}
	if err := s.StreamPodSandboxes(&runtime.StreamPodSandboxesRequest{Filter: &runtime.PodSandboxFilter{Id: "none"}}, boxes); err != nil || len(boxes.parts) > 0 {
		t.Errorf("an empty list: %v, %v", boxes.parts, err)
	}
	boxes.err = context.Canceled
	if err := s.StreamPodSandboxes(&runtime.StreamPodSandboxesRequest{}, boxes); err != context.Canceled {
		t.Errorf("a client that went away: %v", err)
	}
}

// A larger entry than fits goes alone.
func TestBatchOfLargeEntries(t *testing.T) {
	var sizes []int
	b := batch[int]{size: func(n int) int { return n }, send: func(part []int) error {
		sizes = append(sizes, len(part))
		return nil
	}}
	if err := b.all([]int{1, maxBatch - 1, 1, 2 * maxBatch, 1, 1}); err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff([]int{2, 1, 1, 2}, sizes); diff != "" {
		t.Error(diff)
	}
}

// Everything is read and given once; what is gone is left out, what fails ends
// it.
func TestSideBySide(t *testing.T) {
	records := make([]int, 100)
	for i := range records {
		records[i] = i
	}
	var got []int
	read := func(_ context.Context, i int) (int, error) {
		if i%10 == 0 {
			return 0, fmt.Errorf("%d: %w", i, errdefs.ErrNotFound)
		}
		return i, nil
	}
	give := func(i int) error {
		got = append(got, i)
		return nil
	}
	if err := sideBySide(t.Context(), records, read, give); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	want := slices.DeleteFunc(slices.Clone(records), func(i int) bool { return i%10 == 0 })
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	failure := fmt.Errorf("it failed")
	fails := func(_ context.Context, i int) (int, error) {
		if i == 50 {
			return 0, failure
		}
		return i, nil
	}
	if err := sideBySide(t.Context(), records, fails, give); err != failure {
		t.Errorf("error %v", err)
	}
	if err := sideBySide(t.Context(), records, read, func(int) error { return failure }); err != failure {
		t.Errorf("error %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sideBySide(ended, records, read, give); err != context.Canceled {
		t.Errorf("error %v", err)
	}
}

// Whatever a message has in it, a client gets all of it.
func TestCodec(t *testing.T) {
	plain := &runtime.ListContainersResponse{Containers: []*runtime.Container{{Id: "a"}}}
	wire, err := proto.Marshal(plain)
	if err != nil {
		t.Fatal(err)
	}
	all, both := new(runtime.ListContainersResponse), proto.Clone(plain)
	all.ProtoReflect().SetUnknown(wire)
	both.ProtoReflect().SetUnknown(wire)
	c := codec{encoding.GetCodecV2("proto")}
	for want, m := range map[int]proto.Message{0: new(runtime.ListContainersResponse), 1: plain, 2: both} {
		checkCodec(t, c, m, want)
	}
	checkCodec(t, c, all, 1)
	if data, err := c.Marshal(all); err != nil || &data[0].ReadOnlyData()[0] != &wire[0] {
		t.Errorf("it was copied: %v", err)
	}
}

func checkCodec(t *testing.T, c encoding.CodecV2, m proto.Message, want int) {
	t.Helper()
	data, err := c.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	got := new(runtime.ListContainersResponse)
	if err := c.Unmarshal(data, got); err != nil {
		t.Fatal(err)
	}
	if len(got.Containers) != want {
		t.Errorf("%v became %v", m, got)
	}
}

func BenchmarkListContainers(b *testing.B) {
	s := listServer(b, 50)
	b.ReportAllocs()
	for b.Loop() {
		resp, err := s.ListContainers(b.Context(), &runtime.ListContainersRequest{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := proto.Marshal(resp); err != nil {
			b.Fatal(err)
		}
	}
}
