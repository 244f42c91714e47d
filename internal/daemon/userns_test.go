package daemon

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"berth/internal/config"
	"berth/internal/spec"
)

func TestNoUserNamespaces(t *testing.T) {
	c := config.Default()
	c.Runtime.Handlers["gvisor"] = config.Handler{Type: "io.containerd.runsc.v1"}
	for name, tc := range map[string]struct {
		kernel, snapshotter bool
		handler, words      string // no words: they can
	}{
		"default":     {true, true, "", ""},
		"runc":        {true, true, "runc", ""},
		"other shim":  {true, true, "gvisor", "gvisor"},
		"kernel":      {false, true, "", "max_user_namespaces"},
		"snapshotter": {true, false, "berth", "overlayfs"},
	} {
		p := &parts{Options: Options{Config: c}, kernel: spec.Kernel{UserNamespaces: tc.kernel}, mapsIDs: tc.snapshotter}
		err := p.noUserNamespaces(tc.handler)
		if tc.words == "" && err != nil || tc.words != "" && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tc.words)) {
			t.Errorf("%s: %v", name, err)
		}
		if p.userNamespaces(tc.handler) != (tc.words == "") {
			t.Errorf("%s: reported wrongly", name)
		}
	}
}
