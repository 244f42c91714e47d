package builtin

import (
	"testing"

	"github.com/containernetworking/cni/libcni"
)

// BenchmarkAddDel measures ADD and DEL of one pod by both implementations:
// bridge, host-local and portmap, with masquerading, with and without ports.
func BenchmarkAddDel(b *testing.B) {
	confs := []struct {
		name, conf string
		caps       map[string]any
	}{
		{"nftables", portConf(`"isGateway":true,"hairpinMode":true,"ipMasq":true,"ipMasqBackend":"nftables",`+
			ipamOf(v4+`,"routes":[{"dst":"0.0.0.0/0"}]`), `,"backend":"nftables"`), nil},
		{"nftables-dual-ports", portConf(`"isGateway":true,"hairpinMode":true,"ipMasq":true,"ipMasqBackend":"nftables",`+
			ipamOf(dual+`,"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]`), `,"backend":"nftables"`), somePorts},
		{"iptables-ports", portConf(`"isGateway":true,"ipMasq":true,`+ipamOf(v4), ``), somePorts},
	}
	for _, c := range confs {
		for i, s := range sides(b) {
			for _, others := range []int{0, 200} {
				if others > 0 && i == 0 {
					continue // the reference would take minutes to make them
				}
				b.Run(c.name+"/"+s.name+map[bool]string{true: "-beside-200"}[others > 0], func(b *testing.B) {
					w := newWorld(b, c.conf, c.caps)
					for range others {
						w.add(s, w.pod())
					}
					p := w.pod()
					b.Run("add", func(b *testing.B) { measure(b, w, s, p, w.add2, w.del) })
					b.Run("del", func(b *testing.B) { measure(b, w, s, p, w.del, w.add2) })
				})
			}
		}
	}
}

func (w *world) add2(s side, p *libcni.RuntimeConf) { w.add(s, p) }

// measure times one call of a pair. The goroutine of a benchmark has no host of
// its own: it takes the world's.
func measure(b *testing.B, w *world, s side, p *libcni.RuntimeConf, timed, other func(side, *libcni.RuntimeConf)) {
	w.enter(b)
	first, second := timed, other
	del := b.Name()[len(b.Name())-3:] == "del"
	if del {
		first, second = other, timed
	}
	for b.Loop() {
		if del {
			b.StopTimer()
		}
		first(s, p)
		if del {
			b.StartTimer()
		} else {
			b.StopTimer()
		}
		second(s, p)
		if !del {
			b.StartTimer()
		}
	}
}
