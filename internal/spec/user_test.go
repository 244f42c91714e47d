package spec

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\n# comment\nweb:x:1000:1001:Web:/srv:\nweb:x:7:7::/:\n42:x:1042:1042::/:\nhuge:x:99999999999999999999:0::/:\nneg:x:1:-5::/:\n"
	groups = "root:x:0:\nweb:x:1001:web\nwheel:x:10:root,web\nstaff:x:50:web,other\nhuge:x:4294967296:neg2\n"
)

func TestResolveUser(t *testing.T) {
	id := func(v int64) *runtime.Int64Value { return &runtime.Int64Value{Value: v} }
	type sc = runtime.LinuxContainerSecurityContext
	const strict = runtime.SupplementalGroupsPolicy_Strict
	for name, tc := range map[string]struct {
		sc    *sc
		image string
		want  User
		fails string
	}{
		"nothing":                    {nil, "", User{0, 0, []uint32{0, 10}}, ""},
		"image name":                 {nil, "web", User{1000, 1001, []uint32{10, 50, 1001}}, ""},
		"image uid":                  {nil, "1000", User{1000, 1001, []uint32{10, 50, 1001}}, ""},
		"image uid unknown":          {nil, "5", User{5, 0, []uint32{0}}, ""},
		"image name:group":           {nil, "web:staff", User{1000, 50, []uint32{10, 50, 1001}}, ""},
		"image uid:gid":              {nil, "5:6", User{5, 6, []uint32{6}}, ""},
		"image :group":               {nil, ":staff", User{0, 50, []uint32{10, 50}}, ""},
		"image user:":                {nil, "web:", User{1000, 1001, []uint32{10, 50, 1001}}, ""},
		"image unknown":              {nil, "ghost", User{}, `user "ghost" is not in the image's /etc/passwd`},
		"image unknown group":        {nil, "web:ghosts", User{}, `group "ghosts" is not in the image's /etc/group`},
		"image uid out of range":     {nil, "2147483648", User{}, "2147483647"},
		"image uid far out of range": {nil, "99999999999999999999", User{}, "2147483647"},
		"image negative":             {nil, "-1", User{}, "2147483647"},
		"image gid out of range":     {nil, "0:2147483648", User{}, "2147483647"},
		"image three parts":          {nil, "web:staff:x", User{}, `group "staff:x"`},
		"file's uid out of range":    {nil, "huge", User{}, "2147483647"},
		"file's gid out of range":    {nil, "neg", User{}, "2147483647"},
		"run as user":                {&sc{RunAsUser: id(1000)}, "ghost", User{1000, 1001, []uint32{10, 50, 1001}}, ""},
		"run as user and group":      {&sc{RunAsUser: id(1000), RunAsGroup: id(3)}, "", User{1000, 3, []uint32{3, 10, 50, 1001}}, ""},
		"run as root":                {&sc{RunAsUser: id(0)}, "web", User{0, 0, []uint32{0, 10}}, ""},
		"run as name":                {&sc{RunAsUsername: "web", RunAsGroup: id(9)}, "", User{1000, 9, []uint32{9, 10, 50, 1001}}, ""},
		"run as a number by name":    {&sc{RunAsUsername: "42"}, "", User{42, 0, []uint32{0}}, ""},
		"run as unknown":             {&sc{RunAsUsername: "ghost"}, "", User{}, "linux.security_context.run_as_username"},
		"run as name:group":          {&sc{RunAsUsername: "web:staff"}, "", User{}, "run_as_username"},
		"both":                       {&sc{RunAsUsername: "web", RunAsUser: id(1)}, "", User{}, "run_as_username"},
		"group alone":                {&sc{RunAsGroup: id(1)}, "web", User{}, "run_as_group"},
		"negative user":              {&sc{RunAsUser: id(-1)}, "", User{}, "run_as_user: -1"},
		"group out of range":         {&sc{RunAsUser: id(1), RunAsGroup: id(1 << 31)}, "", User{}, "run_as_group: 2147483648"},
		"supplemental":               {&sc{RunAsUser: id(1000), SupplementalGroups: []int64{50, 7}}, "", User{1000, 1001, []uint32{7, 10, 50, 1001}}, ""},
		"strict":                     {&sc{RunAsUser: id(1000), SupplementalGroups: []int64{7, 7}, SupplementalGroupsPolicy: strict}, "", User{1000, 1001, []uint32{7, 1001}}, ""},
		"strict, none":               {&sc{SupplementalGroupsPolicy: strict}, "web", User{1000, 1001, []uint32{1001}}, ""},
		"negative supplemental":      {&sc{SupplementalGroups: []int64{1, -1}}, "", User{}, "supplemental_groups[1]: -1"},
		"unknown policy":             {&sc{SupplementalGroupsPolicy: 3}, "", User{}, "supplemental_groups_policy: 3"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ResolveUser(tc.sc, tc.image, strings.NewReader(passwd), strings.NewReader(groups))
			if tc.fails != "" {
				if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.fails) {
					t.Fatalf("got %v, %v; want an error with %q", got, err, tc.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestResolveUserFiles(t *testing.T) {
	if got, err := ResolveUser(nil, "5:6", nil, nil); err != nil || got.UID != 5 || got.GID != 6 {
		t.Errorf("without files: got %v, %v", got, err)
	}
	if _, err := ResolveUser(nil, "web", nil, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a name without files: got %v", err)
	}
	broken := errors.New("broken disk")
	if _, err := ResolveUser(nil, "0", io.MultiReader(strings.NewReader(passwd), failing{broken}), nil); !errors.Is(err, broken) {
		t.Errorf("a file that cannot be read: got %v", err)
	}
	if _, err := ResolveUser(nil, "0", nil, endless{}); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("a file without end: got %v", err)
	}
	const last = "a:x:9:9:::"
	exact := strings.Repeat(strings.Repeat("#", 1023)+"\n", maxUserFile/1024)
	exact = exact[:maxUserFile-len(last)-1] + "\n" + last
	if _, err := ResolveUser(nil, "a", strings.NewReader(exact), nil); len(exact) != maxUserFile || err != nil {
		t.Errorf("a file of the largest size (%d): %v", len(exact), err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '#'
		if i%64 == 0 {
			p[i] = '\n'
		}
	}
	return len(p), nil
}

// FuzzResolveUser: whatever the files hold, IDs stay in range, the group is
// among the groups, and errors are the caller's.
func FuzzResolveUser(f *testing.F) {
	f.Add("web:staff", "", int64(-1), passwd, groups)
	f.Add("", "web", int64(5), passwd, groups)
	f.Add("1:99999999999", "", int64(-1), "::::", ":::,")
	f.Add("", "", int64(1<<31), "a:x", "a")
	f.Fuzz(func(t *testing.T, image, name string, gid int64, passwd, group string) {
		sc := &runtime.LinuxContainerSecurityContext{RunAsUsername: name}
		if gid >= 0 {
			sc.RunAsGroup = &runtime.Int64Value{Value: gid}
		}
		got, err := ResolveUser(sc, image, strings.NewReader(passwd), strings.NewReader(group))
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("kind of %v", err)
			}
			return
		}
		const most = 1<<31 - 1
		found := false
		for i, g := range got.AdditionalGIDs {
			found = found || g == got.GID
			if g > most || i > 0 && g <= got.AdditionalGIDs[i-1] {
				t.Fatalf("groups %v", got.AdditionalGIDs)
			}
		}
		if !found || got.UID > most || got.GID > most {
			t.Fatalf("got %+v", got)
		}
	})
}
