package spec

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxUserFile bounds what is read of an image's passwd and group files.
const maxUserFile = 4 << 20

// A User is whom a container's first process runs as.
type User struct {
	UID, GID uint32
	// AdditionalGIDs are sorted and hold GID too: a process that drops its
	// group must not lose what the group is denied.
	AdditionalGIDs []uint32
}

// ResolveUser finds the user: the security context's, else image (the image
// configuration's User, as "user", "uid", "user:group" …), else root. passwd
// and group are the image's files; nil is a missing one.
func ResolveUser(sc *runtime.LinuxContainerSecurityContext, image string, passwd, group io.Reader) (User, error) {
	if err := CheckUser(sc); err != nil {
		return User{}, err
	}
	field, who, groupName := userAsked(sc, image)
	kind := func(err error) error { return fmt.Errorf("%s: %w: %w", field, err, errdefs.ErrInvalidArgument) }
	uid, gid, name, err := findUser(who, passwd)
	if err != nil {
		return User{}, kind(err)
	}
	explicit, member, err := findGroups(groupName, name, group)
	if err != nil {
		return User{}, kind(err)
	}
	if groupName != "" {
		gid = explicit
	}
	gids := []uint32{gid}
	if sc.GetSupplementalGroupsPolicy() == runtime.SupplementalGroupsPolicy_Merge {
		gids = append(gids, member...)
	}
	for _, g := range sc.GetSupplementalGroups() {
		gids = append(gids, uint32(g))
	}
	slices.Sort(gids)
	return User{UID: uid, GID: gid, AdditionalGIDs: slices.Compact(gids)}, nil
}

// CheckUser says what is wrong with the users and groups of sc, whatever the
// image is.
func CheckUser(sc *runtime.LinuxContainerSecurityContext) error {
	const prefix = "linux.security_context."
	uid, gid, name := sc.GetRunAsUser(), sc.GetRunAsGroup(), sc.GetRunAsUsername()
	if uid != nil && name != "" {
		return fmt.Errorf(prefix+"run_as_username: %s: run_as_user is set as well: set one of them: %w", Shown(name), errdefs.ErrInvalidArgument)
	}
	if gid != nil && uid == nil && name == "" {
		return fmt.Errorf(prefix+"run_as_group: %d: it needs run_as_user or run_as_username: %w", gid.GetValue(), errdefs.ErrInvalidArgument)
	}
	if strings.ContainsAny(name, ":\x00\n") {
		return fmt.Errorf(prefix+"run_as_username: %s: it is a user's name alone: %w", Shown(name), errdefs.ErrInvalidArgument)
	}
	if err := checkRange(prefix+"run_as_user", uid.GetValue()); err != nil {
		return err
	}
	if err := checkRange(prefix+"run_as_group", gid.GetValue()); err != nil {
		return err
	}
	for i, g := range sc.GetSupplementalGroups() {
		if err := checkRange(fmt.Sprintf(prefix+"supplemental_groups[%d]", i), g); err != nil {
			return err
		}
	}
	switch policy := sc.GetSupplementalGroupsPolicy(); policy {
	case runtime.SupplementalGroupsPolicy_Merge, runtime.SupplementalGroupsPolicy_Strict:
		return nil
	default:
		return fmt.Errorf(prefix+"supplemental_groups_policy: %d is no policy; use Merge or Strict: %w", policy, errdefs.ErrInvalidArgument)
	}
}

func checkRange(field string, id int64) error {
	if id < 0 || id > math.MaxInt32 {
		return fmt.Errorf("%s: %d: %w: %w", field, id, errRange, errdefs.ErrInvalidArgument)
	}
	return nil
}

// userAsked is the user and the group to look for, "" for a group not given,
// and the field that says so.
func userAsked(sc *runtime.LinuxContainerSecurityContext, image string) (field, who, group string) {
	switch {
	case sc.GetRunAsUser() != nil:
		field, who = "linux.security_context.run_as_user", strconv.FormatInt(sc.GetRunAsUser().GetValue(), 10)
	case sc.GetRunAsUsername() != "":
		field, who = "linux.security_context.run_as_username", sc.GetRunAsUsername()
	default:
		field = fmt.Sprintf("user %s of the image", Shown(image))
		who, group, _ = strings.Cut(image, ":")
		if who == "" {
			who = "0" // "" is root, ":group" root with a group
		}
	}
	if gid := sc.GetRunAsGroup(); gid != nil {
		group = strconv.FormatInt(gid.GetValue(), 10)
	}
	return field, who, group
}

// errRange: runc takes no more.
var errRange = errors.New("an ID is from 0 to 2147483647")

// limited is a reader that fails at its end instead of ending early.
type limited struct {
	r    io.Reader
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		// What ends exactly here is fine.
		if n, err := l.r.Read(make([]byte, 1)); n == 0 && err != nil {
			return 0, err
		}
		return 0, fmt.Errorf("it is larger than %d bytes", maxUserFile)
	}
	n, err := l.r.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

// findUser finds a name or a number. A number need not be in the file and has
// group 0 then. The first match counts.
func findUser(who string, passwd io.Reader) (uid, gid uint32, name string, err error) {
	number, numeric, err := parseID(who)
	if err != nil {
		return 0, 0, "", err
	}
	var found []user.User
	if passwd != nil {
		found, err = user.ParsePasswdFilter(&limited{r: passwd, left: maxUserFile}, func(u user.User) bool {
			return numeric && u.Uid == number || !numeric && u.Name == who
		})
		if err != nil {
			return 0, 0, "", fmt.Errorf("the image's /etc/passwd cannot be read: %w", err)
		}
	}
	switch {
	case len(found) == 0 && numeric:
		return uint32(number), 0, "", nil
	case len(found) == 0:
		return 0, 0, "", fmt.Errorf("user %s is not in the image's /etc/passwd: give a numeric user, or add it to the image", Shown(who))
	}
	u := found[0]
	if uid, err = checkID(u.Uid); err != nil {
		return 0, 0, "", fmt.Errorf("user %q has ID %d in the image's /etc/passwd: %w", u.Name, u.Uid, err)
	}
	if gid, err = checkID(u.Gid); err != nil {
		return 0, 0, "", fmt.Errorf("user %q has group %d in the image's /etc/passwd: %w", u.Name, u.Gid, err)
	}
	return uid, gid, u.Name, nil
}

// findGroups finds the group asked for, by name or number ("" is none), and
// those that list the user ("" is none) as a member.
func findGroups(which, member string, file io.Reader) (gid uint32, of []uint32, err error) {
	number, numeric, err := parseID(which)
	if err != nil {
		return 0, nil, err
	}
	named := which != "" && !numeric
	var groups []user.Group
	if file != nil {
		groups, err = user.ParseGroupFilter(&limited{r: file, left: maxUserFile}, func(g user.Group) bool {
			return named && g.Name == which || member != "" && slices.Contains(g.List, member)
		})
		if err != nil {
			return 0, nil, fmt.Errorf("the image's /etc/group cannot be read: %w", err)
		}
	}
	found := false
	for _, g := range groups {
		id, err := checkID(g.Gid)
		if err != nil {
			return 0, nil, fmt.Errorf("group %q has ID %d in the image's /etc/group: %w", g.Name, g.Gid, err)
		}
		if named && g.Name == which && !found {
			gid, found = id, true
		}
		if member != "" && slices.Contains(g.List, member) {
			of = append(of, id)
		}
	}
	if named && !found {
		return 0, nil, fmt.Errorf("group %s is not in the image's /etc/group: give a numeric group, or add it to the image", Shown(which))
	}
	if numeric {
		gid = uint32(number)
	}
	return gid, of, nil
}

// parseID tells numbers from names; a number out of range is an error.
func parseID(s string) (id int, numeric bool, err error) {
	id, err = strconv.Atoi(s)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, false, nil
	}
	if err != nil || id < 0 || id > math.MaxInt32 {
		return 0, false, fmt.Errorf("%s: %w", Shown(s), errRange)
	}
	return id, true, nil
}

func checkID(id int) (uint32, error) {
	if id < 0 || id > math.MaxInt32 {
		return 0, errRange
	}
	return uint32(id), nil
}
