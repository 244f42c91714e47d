package spec

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCheckUserNamespace(t *testing.T) {
	type maps = []*runtime.IDMapping
	one := func(container, host, length uint32) *runtime.IDMapping {
		return &runtime.IDMapping{ContainerId: container, HostId: host, Length: length}
	}
	many := func(n int) (out maps) {
		for i := range n {
			out = append(out, one(uint32(i), uint32(1000+i), 1))
		}
		return out
	}
	for name, tc := range map[string]struct {
		uids, gids maps
		words      string // "": it is right
	}{
		"as a kubelet's":      {mappings(), mappings(), ""},
		"different":           {maps{one(0, 1, 2)}, maps{one(0, 10, 1)}, ""},
		"several":             {maps{one(10, 0, 10), one(0, 10, 10)}, mappings(), ""},
		"all":                 {maps{one(0, 0, 1<<32-1)}, mappings(), ""},
		"the most":            {many(maxMappings), mappings(), ""},
		"too many":            {many(maxMappings + 1), mappings(), "o.userns_options.uids: 33 mappings"},
		"no users":            {nil, mappings(), "o.userns_options.uids: 0 mappings"},
		"no groups":           {mappings(), nil, "o.userns_options.gids: 0 mappings"},
		"empty":               {mappings(), maps{one(0, 1, 0)}, "gids[0].length"},
		"container's too far": {maps{one(0, 0, 1), one(1<<32-1, 1, 1)}, mappings(), "uids[1].container_id"},
		"host's too far":      {maps{one(0, 1, 1<<32-1)}, mappings(), "uids[0].host_id"},
		"container's twice":   {maps{one(0, 0, 10), one(9, 10, 1)}, mappings(), "uids[1].container_id: 9: its 1 IDs are mapped by o.userns_options.uids[0] too"},
		"host's twice":        {maps{one(5, 10, 10), one(0, 6, 5)}, mappings(), "uids[1].host_id: 6"},
		"no root":             {maps{one(1, 1, 1)}, mappings(), "ID 0 is not mapped"},
	} {
		t.Run(name, func(t *testing.T) {
			err := CheckUserNamespace("o", &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{Uids: tc.uids, Gids: tc.gids}})
			if tc.words == "" && err != nil || tc.words != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.words)) {
				t.Errorf("got %v, want %q", err, tc.words)
			}
		})
	}
	for name, o := range map[string]*runtime.NamespaceOption{
		"nothing": nil, "none": {}, "the node's": {UsernsOptions: &runtime.UserNamespace{Mode: runtime.NamespaceMode_NODE}},
		"the network is the node's": {Network: runtime.NamespaceMode_NODE, UsernsOptions: usernsOptions()},
	} {
		if err := CheckUserNamespace("o", o); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostUser(t *testing.T) {
	in := input()
	plain := in.Sandbox
	mapped := input()
	inUserNamespace(&mapped)
	got := [][2]uint32{}
	note := func(uid, gid uint32) { got = append(got, [2]uint32{uid, gid}) }
	note(HostRoot(plain))
	note(HostRoot(mapped.Sandbox))
	note(HostUser(plain, User{UID: 3, GID: 4}))
	note(HostUser(mapped.Sandbox, User{UID: 3, GID: 4}))
	if diff := cmp.Diff([][2]uint32{{0, 0}, {655360, 655360}, {3, 4}, {655363, 655364}}, got); diff != "" {
		t.Error(diff)
	}
}
