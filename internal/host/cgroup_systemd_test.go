package host

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
)

// fakeSystemd answers on D-Bus as systemd does, on a machine that has none.
// TestRealSystemd is for one that has.
type fakeSystemd struct {
	t      *testing.T
	socket string

	mu     sync.Mutex // guards the rest
	result string     // of every job
	units  map[string]bool
	calls  []string
	conns  []net.Conn
}

func newFakeSystemd(t *testing.T) *fakeSystemd {
	f := &fakeSystemd{t: t, socket: filepath.Join(t.TempDir(), "bus"), result: "done", units: map[string]bool{}}
	l, err := net.Listen("unix", f.socket)
	must(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns = append(f.conns, conn)
			f.mu.Unlock()
			serving.Go(func() { f.serve(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		f.drop()
		serving.Wait()
	})
	return f
}

// drop breaks all connections.
func (f *fakeSystemd) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, conn := range f.conns {
		conn.Close()
	}
	f.conns = nil
}

// jobsEnd sets how jobs end; "" is never.
func (f *fakeSystemd) jobsEnd(result string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.result = result
}

func (f *fakeSystemd) asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fakeSystemd) dial(ctx context.Context) (*systemd.Conn, error) {
	return systemd.NewConnection(func() (*dbus.Conn, error) {
		conn, err := dbus.Dial("unix:path="+f.socket, dbus.WithContext(ctx))
		if err != nil {
			return nil, err
		}
		return conn, conn.Auth([]dbus.Auth{dbus.AuthExternal("0")})
	})
}

func (f *fakeSystemd) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for begun := false; !begun; {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		switch words := strings.Fields(strings.TrimLeft(line, "\x00")); {
		case words[0] == "BEGIN":
			begun = true
		case words[0] == "AUTH" && len(words) == 1:
			fmt.Fprint(conn, "REJECTED EXTERNAL\r\n")
		case words[0] == "AUTH":
			fmt.Fprint(conn, "OK 1234\r\n")
		default:
			fmt.Fprint(conn, "ERROR\r\n")
		}
	}
	for {
		call, err := dbus.DecodeMessage(in)
		if err != nil {
			return
		}
		f.answer(conn, call)
	}
}

// answer does what a call asks for. Every connection gets the signal.
func (f *fakeSystemd) answer(conn net.Conn, call *dbus.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	member, _ := call.Headers[dbus.FieldMember].Value().(string)
	name, fault := "", ""
	if len(call.Body) > 0 && member != "AddMatch" {
		name = call.Body[0].(string)
		f.calls = append(f.calls, member+" "+name)
	}
	switch {
	case member == "StartTransientUnit" && f.units[name]:
		fault = "UnitExists"
	case member == "StartTransientUnit":
		f.units[name] = true
	case member == "StopUnit" && !f.units[name], member == "ResetFailedUnit" && !f.units[name]:
		fault = "NoSuchUnit"
	case member == "StopUnit":
		delete(f.units, name)
	}
	job := dbus.ObjectPath("/org/freedesktop/systemd1/job/1")
	reply := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{}}
	withJob := fault == "" && (member == "StartTransientUnit" || member == "StopUnit")
	switch {
	case fault != "":
		reply.Type = dbus.TypeError
		reply.Headers[dbus.FieldErrorName] = dbus.MakeVariant("org.freedesktop.systemd1." + fault)
	case withJob:
		reply.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(job))
		reply.Body = []any{job}
	}
	reply.Headers[dbus.FieldReplySerial] = dbus.MakeVariant(call.Serial())
	f.send(conn, reply)
	if withJob && f.result != "" {
		body := []any{uint32(1), job, name, f.result}
		for _, c := range f.conns {
			f.send(c, &dbus.Message{Type: dbus.TypeSignal, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
				dbus.FieldPath:      dbus.MakeVariant(dbus.ObjectPath("/org/freedesktop/systemd1")),
				dbus.FieldInterface: dbus.MakeVariant("org.freedesktop.systemd1.Manager"),
				dbus.FieldMember:    dbus.MakeVariant("JobRemoved"),
				dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(body...)),
			}})
		}
	}
}

func (f *fakeSystemd) send(conn net.Conn, m *dbus.Message) {
	var out strings.Builder
	if err := m.EncodeTo(&out, binary.LittleEndian); err != nil {
		f.t.Errorf("encode: %v", err)
		return
	}
	text := []byte(out.String())
	binary.LittleEndian.PutUint32(text[8:], 1) // the serial, which must not be 0
	conn.Write(text)
}

func TestSystemdDriver(t *testing.T) {
	f := newFakeSystemd(t)
	c, err := NewCgroupsAt(machine(t, hybrid, true), "auto")
	must(t, err)
	c.units = &systemdUnits{dial: f.dial}
	defer c.Close()
	// The tree is not cgroups: a cpuset's files are made by hand.
	for _, mount := range c.layout.all {
		must(t, os.MkdirAll(mount, 0o755))
	}
	slice := "/kubepods.slice/kubepods-pod1.slice"
	for dir := c.Dir("cpuset", slice); ; dir = filepath.Dir(dir) {
		write(t, filepath.Join(dir, "cpuset.cpus"), "0-1")
		write(t, filepath.Join(dir, "cpuset.mems"), "0")
		if dir == c.Dir("cpuset", "/") {
			break
		}
	}
	must(t, c.Ensure("kubepods-pod1.slice"))
	must(t, c.Ensure(slice))
	if !c.Exists("kubepods-pod1.slice") || !c.Exists(slice) || c.Exists("kubepods-pod2.slice") {
		t.Error("wrong about what exists")
	}
	must(t, os.RemoveAll(filepath.Join(c.Dir("cpuset", "/kubepods.slice"))))
	f.drop() // as when D-Bus is started anew
	must(t, c.Remove("kubepods-pod1.slice"))
	must(t, c.Remove("kubepods-pod1.slice"))
	want := []string{
		"StartTransientUnit kubepods-pod1.slice",
		"StartTransientUnit kubepods-pod1.slice",
		"StopUnit kubepods-pod1.slice",
		"ResetFailedUnit kubepods-pod1.slice",
	}
	if diff := cmp.Diff(want, f.asked()); diff != "" {
		t.Error(diff)
	}
}

// With processes in it, a unit must not be stopped: that would kill them.
func TestSystemdSparesBusyUnit(t *testing.T) {
	f := newFakeSystemd(t)
	c, err := NewCgroupsAt(machine(t, hybrid, true), "auto")
	must(t, err)
	c.units = &systemdUnits{dial: f.dial}
	defer c.Close()
	for path, procs := range map[string]string{"/a.slice": "", "/a.slice/a-b.slice": "", "/a.slice/a-b.slice/x.scope": "1\n"} {
		write(t, filepath.Join(c.Dir("memory", path), "cgroup.procs"), procs)
	}
	if err := c.Remove("a.slice"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v", err)
	}
	if calls := f.asked(); len(calls) > 0 {
		t.Errorf("calls %v", calls)
	}
}

func TestSystemdFailures(t *testing.T) {
	f := newFakeSystemd(t)
	u := &systemdUnits{dial: f.dial}
	defer u.Close()
	f.jobsEnd("failed")
	if err := u.StartSlice(t.Context(), "x.slice"); err == nil || !strings.Contains(err.Error(), `"failed"`) {
		t.Errorf("a failed job: %v", err)
	}
	f.jobsEnd("")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := u.Stop(ctx, "x.slice"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	must(t, u.Close())
	must(t, u.Close())
	if err := u.StartSlice(t.Context(), "x.slice"); !errdefs.IsUnavailable(err) {
		t.Errorf("closed: %v", err)
	}
	u = &systemdUnits{dial: func(context.Context) (*systemd.Conn, error) { return nil, os.ErrNotExist }}
	if err := u.StartSlice(t.Context(), "x.slice"); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "D-Bus") {
		t.Errorf("no bus: %v", err)
	}
}

// A bus that takes connections and says nothing delays nobody for longer than
// he wants to wait, and not Close.
func TestSystemdThatDoesNotAnswer(t *testing.T) {
	f := &fakeSystemd{t: t, socket: filepath.Join(t.TempDir(), "bus")}
	l, err := net.Listen("unix", f.socket)
	must(t, err)
	defer l.Close()
	u := &systemdUnits{dial: f.dial}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	failed := make(chan error)
	for range 3 {
		go func() { failed <- u.StartSlice(ctx, "x.slice") }()
	}
	for range 3 {
		if err := <-failed; !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "D-Bus") {
			t.Errorf("err = %v", err)
		}
	}
	go func() { failed <- u.StartSlice(context.Background(), "x.slice") }()
	must(t, u.Close())
	if err := <-failed; err == nil {
		t.Error("a call under way goes on after Close")
	}

	defer func(d time.Duration) { dialTimeout = d }(dialTimeout)
	dialTimeout = 10 * time.Millisecond
	u = &systemdUnits{dial: f.dial}
	defer u.Close()
	if err := u.StartSlice(t.Context(), "x.slice"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a caller with all the time: %v", err)
	}
}

// TestRealSystemd needs a machine that systemd runs.
func TestRealSystemd(t *testing.T) {
	if !runsSystemd("/") {
		t.Skip("this machine is not run by systemd")
	}
	c, err := NewCgroups("auto")
	must(t, err)
	t.Cleanup(func() {
		if err := c.Close(); err != nil { // after the removal below, which connects
			t.Error(err)
		}
	})
	if c.Driver() != SystemdDriver {
		t.Fatalf("driver %s", c.Driver())
	}
	parent := fmt.Sprintf("berthtest-pod%d.slice", os.Getpid())
	t.Cleanup(func() {
		if err := errors.Join(c.KillAll(context.Background(), "berthtest.slice"), c.Remove("berthtest.slice")); err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		must(t, c.Ensure(parent))
	}
	if !c.Exists(parent) {
		t.Error("the slice does not exist")
	}
	scope := c.Path(parent, "ID")
	cmd := start(t, exec.Command("systemd-run", "--scope", "--slice="+parent, "--unit="+filepath.Base(scope), "sh", "-c", "echo in; exec sleep 1000"))
	p, err := ProcessOf(cmd.Process.Pid)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for {
		pids, err := c.Procs(scope)
		must(t, err)
		if len(pids) == 1 && pids[0] == p.PID {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("processes of %s: %v, want %d", scope, pids, p.PID)
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, path := range []string{scope, parent} {
		if err := c.Remove(path); !errdefs.IsFailedPrecondition(err) || !p.Alive() {
			t.Errorf("remove %s with a process in it: %v", path, err)
		}
	}
	if kills, err := c.OOMKills(scope); err != nil || kills != 0 {
		t.Errorf("%d OOM kills, %v", kills, err)
	}
	reaped := make(chan error, 1)
	go func() { reaped <- cmd.Wait() }()
	must(t, c.KillAll(ctx, scope))
	<-reaped
	for range 2 {
		must(t, c.Remove(scope))
		must(t, c.Remove(parent))
		if c.Exists(scope) || c.Exists(parent) {
			t.Error("exists after its removal")
		}
	}
}
