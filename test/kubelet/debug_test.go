package kubelet

import (
	"os"
	"testing"
	"time"
)

func TestZDebug(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "busy")
		p.ready(t)
		time.Sleep(25 * time.Second)
		for f, u := range map[string]string{"summary": "/stats/summary", "cadvisor": "/metrics/cadvisor", "resource": "/metrics/resource"} {
			s, err := n.get(t.Context(), u)
			if err != nil {
				t.Error(err)
			}
			os.WriteFile("/tmp/lead/dbg-"+f+"-"+t.Name()[len("TestZDebug/"):], []byte(s), 0o644)
		}
	})
}
