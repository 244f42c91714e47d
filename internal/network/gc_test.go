package network

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestGC(t *testing.T) { eachWay(t, testGC) }

func testGC(t *testing.T, way func(*Options)) {
	e := newEnv(t, nil, way)
	live, gone, cut, lost := e.pod(), e.pod(), e.pod(), e.pod()
	e.add(live)
	before := e.state()
	for _, p := range []Pod{gone, cut, lost} {
		e.add(p)
	}
	unpin(t, gone)
	unpin(t, lost)
	// An ADD that a kill cut, and a reservation whose cache a power cut took.
	atts, err := e.attachments(cut.ID)
	if err != nil || len(atts) != 1 {
		t.Fatal(atts, err)
	}
	mustRename(t, e.opts.CacheDir+"/results/bt0-"+cut.ID+"-eth0", e.dir+"/aside")
	mustWrite(t, e.intentFile(cut.ID), fmt.Sprintf(`{"version":1,"attachment":{"ContainerID":%q,"Network":"bt0","IfName":"eth0","NetNS":%q,"Config":%s}}`,
		cut.ID, cut.NetNS, mustJSON(t, atts[0].Config)), 0o600)
	mustRemove(t, e.dir+"/aside")
	mustRemove(t, e.opts.CacheDir+"/results/bt0-"+lost.ID+"-eth0")
	// host-local was killed before it wrote the file.
	mustWrite(t, e.dataDir()+"/bt0/10.88.16.200", "", 0o600)
	// A record that nobody can read stops nothing.
	mustWrite(t, e.intentFile("damaged"), "{", 0o600)
	e.restart()
	if err := e.GC(t.Context(), []Pod{live}); err != nil {
		t.Fatal(err)
	}
	mustRemove(t, e.intentFile("damaged"))
	// The kernel takes down what is in a namespace some time after that is gone.
	e.eventually("the state is as before:\n"+before, func() bool { return e.state() == before })
	if err := e.Check(t.Context(), live); err != nil {
		t.Error("the live pod:", err)
	}
	e.del(live)
}

// Plugins are told of GC only where they are ours alone.
func TestGCOfPlugins(t *testing.T) {
	for _, exclusive := range []bool{false, true} {
		e := newEnv(t, map[string]string{"10.conflist": `{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"agent"}]}`},
			func(o *Options) { o.Exclusive = exclusive })
		e.script("agent", `echo $CNI_COMMAND >>DIR/calls; cat >>DIR/calls`)
		if err := e.GC(t.Context(), []Pod{{ID: "alive"}}); err != nil {
			t.Fatal(err)
		}
		calls, _ := os.ReadFile(e.dir + "/calls")
		if told := strings.Contains(string(calls), `"cni.dev/valid-attachments":[{"containerID":"alive","ifname":"eth0"}]`); told != exclusive {
			t.Errorf("exclusive %v: calls %q", exclusive, calls)
		}
	}
}
