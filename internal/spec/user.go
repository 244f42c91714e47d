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
const maxUserFile = 10 << 20

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
	files, err := parseUserFiles(passwd, group)
	if err != nil {
		return User{}, fmt.Errorf("%s: %w: %w", field, err, errdefs.ErrInvalidArgument)
	}
	uid, gid, name, err := files.user(who)
	if err != nil {
		return User{}, fmt.Errorf("%s: %w: %w", field, err, errdefs.ErrInvalidArgument)
	}
	if groupName != "" {
		if gid, err = files.group(groupName); err != nil {
			return User{}, fmt.Errorf("%s: %w: %w", field, err, errdefs.ErrInvalidArgument)
		}
	}
	gids := []uint32{gid}
	if sc.GetSupplementalGroupsPolicy() == runtime.SupplementalGroupsPolicy_Merge {
		own, err := files.groupsOf(name)
		if err != nil {
			return User{}, fmt.Errorf("%s: %w: %w", field, err, errdefs.ErrInvalidArgument)
		}
		gids = append(gids, own...)
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
		return fmt.Errorf(prefix+"run_as_username: %q: run_as_user is set as well: set one of them: %w", name, errdefs.ErrInvalidArgument)
	}
	if gid != nil && uid == nil && name == "" {
		return fmt.Errorf(prefix+"run_as_group: %d: it needs run_as_user or run_as_username: %w", gid.GetValue(), errdefs.ErrInvalidArgument)
	}
	if strings.ContainsAny(name, ":\x00\n") {
		return fmt.Errorf(prefix+"run_as_username: %q: it is a user's name alone: %w", name, errdefs.ErrInvalidArgument)
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
		field = fmt.Sprintf("user %q of the image", image)
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

// userFiles are an image's passwd and group; nil lists for missing files.
type userFiles struct {
	users  []user.User
	groups []user.Group
}

func parseUserFiles(passwd, group io.Reader) (f userFiles, err error) {
	if passwd != nil {
		if f.users, err = user.ParsePasswd(&limited{r: passwd, left: maxUserFile}); err != nil {
			return f, fmt.Errorf("the image's /etc/passwd cannot be read: %w", err)
		}
	}
	if group != nil {
		if f.groups, err = user.ParseGroup(&limited{r: group, left: maxUserFile}); err != nil {
			return f, fmt.Errorf("the image's /etc/group cannot be read: %w", err)
		}
	}
	return f, nil
}

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

// user finds a name or a number. A number need not be in the file and has
// group 0 then. A file's first match counts.
func (f userFiles) user(who string) (uid, gid uint32, name string, err error) {
	number, numeric, err := parseID(who)
	if err != nil {
		return 0, 0, "", err
	}
	for _, u := range f.users {
		if numeric && u.Uid != number || !numeric && u.Name != who {
			continue
		}
		if uid, err = checkID(u.Uid); err != nil {
			return 0, 0, "", fmt.Errorf("user %q has ID %d in the image's /etc/passwd: %w", u.Name, u.Uid, err)
		}
		if gid, err = checkID(u.Gid); err != nil {
			return 0, 0, "", fmt.Errorf("user %q has group %d in the image's /etc/passwd: %w", u.Name, u.Gid, err)
		}
		return uid, gid, u.Name, nil
	}
	if !numeric {
		return 0, 0, "", fmt.Errorf("user %q is not in the image's /etc/passwd: give a numeric user, or add it to the image", who)
	}
	return uint32(number), 0, "", nil
}

func (f userFiles) group(which string) (uint32, error) {
	number, numeric, err := parseID(which)
	if err != nil {
		return 0, err
	}
	if numeric {
		return uint32(number), nil
	}
	for _, g := range f.groups {
		if g.Name == which {
			gid, err := checkID(g.Gid)
			if err != nil {
				return 0, fmt.Errorf("group %q has ID %d in the image's /etc/group: %w", which, g.Gid, err)
			}
			return gid, nil
		}
	}
	return 0, fmt.Errorf("group %q is not in the image's /etc/group: give a numeric group, or add it to the image", which)
}

// groupsOf are the groups that list the user as a member.
func (f userFiles) groupsOf(name string) ([]uint32, error) {
	if name == "" {
		return nil, nil
	}
	var out []uint32
	for _, g := range f.groups {
		if !slices.Contains(g.List, name) {
			continue
		}
		gid, err := checkID(g.Gid)
		if err != nil {
			return nil, fmt.Errorf("group %q has ID %d in the image's /etc/group: %w", g.Name, g.Gid, err)
		}
		out = append(out, gid)
	}
	return out, nil
}

// parseID tells numbers from names; a number out of range is an error.
func parseID(s string) (id int, numeric bool, err error) {
	id, err = strconv.Atoi(s)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, false, nil
	}
	if err != nil || id < 0 || id > math.MaxInt32 {
		return 0, false, fmt.Errorf("%q: %w", s, errRange)
	}
	return id, true, nil
}

func checkID(id int) (uint32, error) {
	if id < 0 || id > math.MaxInt32 {
		return 0, errRange
	}
	return uint32(id), nil
}
