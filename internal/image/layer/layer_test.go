package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// An entry is a header and what it holds. Without a type it is a file, or a
// directory where the name ends in a slash.
type entry struct {
	tar.Header
	text string
}

var day = time.Date(2024, 2, 3, 4, 5, 6, 789, time.UTC)

func file(name, text string) entry { return entry{tar.Header{Name: name, Mode: 0o644}, text} }
func dir(name string, mode int64) entry {
	return entry{tar.Header{Name: name + "/", Mode: mode}, ""}
}
func symlink(name, to string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}, ""}
}
func hardlink(name, to string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to, Mode: 0o640}, ""}
}

func archiveOf(t testing.TB, entries []entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		if h.Typeflag == 0 && strings.HasSuffix(h.Name, "/") {
			h.Typeflag = tar.TypeDir
		} else if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(e.text))
		}
		if h.ModTime.IsZero() {
			h.ModTime = day
		}
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, e.text); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// render is a tree as text. Times of this hour are left out: nobody set them.
// So are those of access where the test has read a file under another name.
func render(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	links := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		fmt.Fprintf(&b, "%s %o %d:%d", rel, st.Mode, st.Uid, st.Gid)
		if st.Mtim.Sec < time.Now().Unix()-3600 {
			fmt.Fprintf(&b, " %d.%d", st.Mtim.Sec, st.Mtim.Nsec)
			if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Atim.Sec < time.Now().Unix()-3600 {
				fmt.Fprintf(&b, " %d.%d", st.Atim.Sec, st.Atim.Nsec)
			}
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d %.8x", len(data), sha256.Sum256(data))
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %s", to)
		case unix.S_IFCHR, unix.S_IFBLK:
			fmt.Fprintf(&b, " dev %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		if st.Nlink > 1 && !d.IsDir() {
			if first, ok := links[st.Ino]; ok {
				fmt.Fprintf(&b, " same as %s", first)
			} else {
				links[st.Ino] = rel
			}
		}
		b.WriteString(xattrs(path))
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func xattrs(path string) string {
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if err != nil || n == 0 {
		return ""
	}
	all := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		value := make([]byte, 4096)
		n, _ := unix.Lgetxattr(path, name, value)
		all[name] = fmt.Sprintf(" %s=%q", name, value[:max(n, 0)])
	}
	return strings.Join(slices.Sorted(maps.Values(all)), "")
}

// both applies an archive with ours and with containerd's, each into a
// directory of its own beside one that is not to be touched.
func both(t testing.TB, data []byte, lowest bool) (ours, theirs string, ourErr, theirErr error) {
	t.Helper()
	base := t.TempDir()
	for _, d := range []string{"ours", "theirs", "outside"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(base, "outside", "file"), []byte("as it was"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(base, "outside"), day, day); err != nil {
		t.Fatal(err)
	}
	before := render(t, filepath.Join(base, "outside"))
	_, ourErr = Apply(t.Context(), filepath.Join(base, "ours"), bytes.NewReader(data), Options{Lowest: lowest})
	if after := render(t, filepath.Join(base, "outside")); after != before {
		t.Fatalf("it left the root: %s", cmp.Diff(before, after))
	}
	if names, err := os.ReadDir(base); err != nil || len(names) != 3 {
		t.Fatalf("it left the root: %v, %v", names, err)
	}
	var opts []archive.ApplyOpt
	if !lowest {
		opts = append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	}
	_, theirErr = archive.Apply(t.Context(), filepath.Join(base, "theirs"), bytes.NewReader(data), opts...)
	return render(t, filepath.Join(base, "ours")), render(t, filepath.Join(base, "theirs")), ourErr, theirErr
}

var trees = map[string][]entry{
	"files": {
		dir("a", 0o755), file("a/x", "text"), file("a/empty", ""), dir("b", 0o700), file("b/y", strings.Repeat("long ", 100_000)),
		{tar.Header{Name: "a/run", Mode: 0o4755, Uid: 7, Gid: 8}, "setuid"}, {tar.Header{Name: "a/all", Mode: 0o777}, ""},
		{tar.Header{Name: "a/none", Mode: 0}, "x"}, {tar.Header{Name: "a/big", Uid: 1 << 20, Gid: 1 << 21, Mode: 0o600}, ""},
	},
	"directories without an entry": {file("a/b/c/x", "x"), dir("a", 0o711), file("d/x", "x")},
	"names":                        {file("./a", "1"), file("/b", "2"), file("../../c", "3"), file("d/../e", "4"), dir(".", 0o700), file("f//g", "5"), file("x/../../h", "6")},
	"a name again":                 {file("a", "1"), file("a", "22"), dir("b", 0o700), dir("b", 0o755), file("b/x", "x"), file("b", "now a file"), file("c", "x"), dir("c", 0o755), file("c/y", "y"), symlink("l", "b"), dir("l", 0o755)},
	"set-group-ID directory":       {{tar.Header{Name: "a/", Mode: 0o2775, Gid: 33}, ""}, file("a/x", "x"), dir("a/b", 0o755), file("a/b/y", "y")},
	"directory changed later":      {dir("a", 0o755), file("a/x", "x"), {tar.Header{Name: "a/", Mode: 0o2755, Gid: 44}, ""}, file("a/y", "y")},
	"links": {
		dir("a", 0o755), file("a/x", "x"), hardlink("y", "a/x"), hardlink("z", "/a/../a/x"), symlink("s", "a"), file("s/through", "t"),
		symlink("abs", "/a"), file("abs/too", "t"), hardlink("to-link", "s"), symlink("dangling", "none/there"), file("dangling/made", "m"),
		symlink("a/up", "../../../b"), file("a/up/x", "x"), {tar.Header{Name: "owned", Typeflag: tar.TypeSymlink, Linkname: "x", Uid: 5, Gid: 6}, ""},
		hardlink("y", "a/through"),
	},
	"devices": {
		{tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}, ""},
		{tar.Header{Name: "disk", Typeflag: tar.TypeBlock, Devmajor: 8, Devminor: 300, Mode: 0o660, Gid: 6}, ""},
		{tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o622}, ""}, file("null", "replaced"),
	},
	"attributes": {
		{tar.Header{Name: "cap", Mode: 0o755, Uid: 9, PAXRecords: map[string]string{paxXattr + "security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}}, "x"},
		{tar.Header{Name: "user", Mode: 0o644, PAXRecords: map[string]string{paxXattr + "user.one": "1", paxXattr + "user.two": "two"}}, "x"},
		{tar.Header{Name: "dir/", Mode: 0o755, PAXRecords: map[string]string{paxXattr + "user.dir": "d"}}, ""},
		{tar.Header{Name: "trusted", Mode: 0o644, PAXRecords: map[string]string{paxXattr + "trusted.overlay.opaque": "y"}}, "x"},
		{tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "user", PAXRecords: map[string]string{paxXattr + "user.not": "x"}}, ""},
		{tar.Header{Name: "acl/", Mode: 0o755, PAXRecords: map[string]string{paxXattr + "system.posix_acl_default": "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x05\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"}}, ""},
		file("acl/x", "x"), dir("acl/d", 0o755),
	},
	"times": {
		{tar.Header{Name: "old", Mode: 0o644, ModTime: time.Unix(-5, 0)}, ""}, {tar.Header{Name: "far", Mode: 0o644, ModTime: time.Unix(1<<36, 0)}, ""},
		{tar.Header{Name: "access", Mode: 0o644, ModTime: day, AccessTime: day.Add(-time.Hour)}, ""},
		{tar.Header{Name: "later", Mode: 0o644, ModTime: day, AccessTime: day.Add(time.Hour)}, ""},
		{tar.Header{Name: "d/", Mode: 0o755, ModTime: day.Add(-time.Hour)}, ""}, file("d/x", "x"), symlink("s", "d"), dir("gone", 0o755), file("gone", "file"),
	},
	"whiteouts": {
		dir("a", 0o755), {tar.Header{Name: "a/.wh.gone", Uid: 3, Gid: 4}, ""}, file("b/.wh..wh..opq", ""), file("b/new", "n"), file(".wh.top", ""), file("b/.wh..wh..opq", ""),
		file("c/.wh.d", ""), dir("c/d", 0o755), file("c/d/back", "b"), file("a/.wh..wh.plnk", ""),
	},
	"a long name": {file(strings.Repeat("d/", 300)+strings.Repeat("n", 200), "deep")},
}

func TestTheSameTreeAsContainerds(t *testing.T) {
	for name, entries := range trees {
		for _, lowest := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/lowest=%v", name, lowest), func(t *testing.T) {
				ours, theirs, err, theirErr := both(t, archiveOf(t, entries), lowest)
				if err != nil || theirErr != nil {
					t.Fatalf("ours: %v, containerd's: %v", err, theirErr)
				}
				if diff := cmp.Diff(theirs, ours); diff != "" {
					t.Error(diff)
				}
				if len(ours) < 20 {
					t.Errorf("nothing was made: %s", ours)
				}
			})
		}
	}
}

// What is outside is watched by both.
func TestNothingLeavesTheRoot(t *testing.T) {
	for name, entries := range map[string][]entry{
		"up":                     {file("../outside/file", "x"), file("../../outside/file", "x")},
		"relative link":          {symlink("l", "../outside"), file("l/file", "x")},
		"absolute link":          {symlink("l", "/proc/self/cwd"), file("l/file", "x")},
		"link through links":     {symlink("a", ".."), symlink("b", "a/outside"), file("b/file", "x")},
		"link of a directory":    {dir("d", 0o755), symlink("d/l", "../../outside"), dir("d/l/sub", 0o755)},
		"attributes by link":     {symlink("file", "../outside/file"), {tar.Header{Name: "file", Typeflag: tar.TypeSymlink, Linkname: "../outside/file", Uid: 5, Mode: 0o4777}, ""}},
		"hard link":              {hardlink("l", "../outside/file"), file("l", "x")},
		"hard link by link":      {symlink("s", "../outside"), hardlink("l", "s/file")},
		"hard link to link":      {symlink("s", "../outside/file"), hardlink("l", "s"), file("l", "x")},
		"whiteout":               {symlink("s", "../outside"), file("s/.wh.file", "")},
		"opaque":                 {symlink("s", "../outside"), file("s/.wh..wh..opq", "")},
		"whiteout of the parent": {dir("d", 0o755), file("d/.wh...", "")},
		"whiteout of itself":     {dir("d", 0o755), file("d/.wh..", "")},
		"whiteout of nothing":    {dir("d", 0o755), file("d/.wh.", "")},
		"times of a directory":   {dir("d", 0o755), file("d", ""), symlink("d", "../outside")},
		"replaced by a link":     {dir("d", 0o755), file("d/x", "1"), symlink("d", "../outside"), file("d/x", "2"), file("d/file", "3")},
		"links in a circle":      {symlink("a", "b"), symlink("b", "a"), file("a/x", "x")},
		"a link to itself":       {symlink("a", "a/b"), file("a/x", "x")},
	} {
		for _, lowest := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/lowest=%v", name, lowest), func(t *testing.T) {
				ours, theirs, err, theirErr := both(t, archiveOf(t, entries), lowest)
				t.Logf("ours: %v, containerd's: %v", err, theirErr)
				if ours, theirs := noDirTimes(ours), noDirTimes(theirs); err == nil && theirErr == nil && ours != theirs {
					t.Error(cmp.Diff(theirs, ours))
				}
				// containerd does not find the directory whose times it is to set.
				if (err == nil) != (theirErr == nil) && name != "times of a directory" {
					t.Errorf("ours: %v, containerd's: %v", err, theirErr)
				}
			})
		}
	}
}

func TestDamaged(t *testing.T) {
	whole := archiveOf(t, []entry{dir("a", 0o755), file("a/x", strings.Repeat("x", 100_000)), file("b", "b")})
	for _, n := range []int{1, 511, 1500, 50_000, 80_000} {
		if _, err := Apply(t.Context(), t.TempDir(), bytes.NewReader(whole[:n]), Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d: %v", n, err)
		}
	}
	bad := slices.Clone(whole)
	bad[150] ^= 1
	if _, err := Apply(t.Context(), t.TempDir(), bytes.NewReader(bad), Options{}); err == nil {
		t.Error("a wrong checksum passed")
	}
}

func TestInherit(t *testing.T) {
	base := t.TempDir()
	apply := func(name string, lowest bool, entries ...entry) (dir string, implied []string) {
		dir = filepath.Join(base, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		implied, err := Apply(t.Context(), dir, bytes.NewReader(archiveOf(t, entries)), Options{Lowest: lowest})
		if err != nil {
			t.Fatal(err)
		}
		return dir, implied
	}
	one, _ := apply("1", true, entry{tar.Header{Name: "tmp/", Mode: 0o1777}, ""},
		entry{tar.Header{Name: "home/", Mode: 0o711, Uid: 3, Gid: 4, PAXRecords: map[string]string{paxXattr + "user.k": "v"}}, ""}, file("was", "a file"), dir("hidden", 0o700))
	two, _ := apply("2", false, dir("home", 0o750), file(".wh.hidden", ""))
	three, implied := apply("3", false, file("tmp/x/y", ""), file("home/z", ""), file("was/now", ""), file("hidden/n", ""), file("later/x", ""), dir("later", 0o700))
	if diff := cmp.Diff([]string{"hidden", "home", "tmp", "tmp/x", "was"}, implied); diff != "" {
		t.Fatal(diff)
	}
	if err := Inherit(three, implied, []string{two, one}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint32{"tmp": 0o1777, "tmp/x": 0o755, "home": 0o750, "was": 0o755, "hidden": 0o755, "later": 0o700} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(three, name), &st); err != nil {
			t.Fatal(err)
		}
		if got := st.Mode & 0o7777; got != want {
			t.Errorf("%s has mode %o, want %o", name, got, want)
		}
	}
}

// dirTime is the time in the line of a directory.
var dirTime = regexp.MustCompile(`(?m)^(.* 4\d{4} \d+:\d+) \d+\.\d+`)

// noDirTimes leaves out the times of directories: where a link has replaced
// one, containerd follows it to set them.
func noDirTimes(tree string) string { return dirTime.ReplaceAllString(tree, "$1") }

// Archives made of few names, so that they meet each other.
func FuzzApply(f *testing.F) {
	names := []string{"a", "b", "a/b", "a/c", "b/x", "l", "l/x", "../a", "l/../b", ".wh.a", "a/.wh.b", "a/.wh..wh..opq", "l/.wh.x", "a/b/c", "l/l"}
	targets := []string{"a", "/b", "../outside", "../../outside", "b/..", "l", ".", "none", "/a/b", "../outside/file"}
	types := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeReg}
	f.Add([]byte{0, 1, 0, 5, 2, 2, 6, 0, 0}, true)
	f.Add([]byte{2, 0, 0, 9, 0, 0, 5, 2, 0, 11, 0, 0}, false)
	f.Fuzz(func(t *testing.T, program []byte, lowest bool) {
		var entries []entry
		for len(program) >= 3 && len(entries) < 40 {
			h := tar.Header{Name: names[int(program[0])%len(names)], Typeflag: types[int(program[1])%len(types)],
				Linkname: targets[int(program[2])%len(targets)], Mode: int64(program[1]/8)<<4 | 0o400, Uid: int(program[2] / 64)}
			program = program[3:]
			if lowest && strings.HasSuffix(h.Name, whiteoutOpaque) {
				continue // containerd drops files of the layer itself then
			}
			e := entry{h, ""}
			switch h.Typeflag {
			case tar.TypeReg:
				e.Typeflag, e.Linkname, e.text = 0, "", h.Name
			case tar.TypeDir:
				e.Name, e.Linkname = h.Name+"/", ""
			case tar.TypeFifo:
				e.Linkname = ""
			}
			entries = append(entries, e)
		}
		ours, theirs, err, theirErr := both(t, archiveOf(t, entries), lowest)
		ours, theirs = noDirTimes(ours), noDirTimes(theirs)
		if err == nil && theirErr == nil && ours != theirs {
			t.Errorf("%s\n%s", describeAll(entries), cmp.Diff(theirs, ours))
		}
	})
}

// Any bytes at all.
func FuzzBytes(f *testing.F) {
	for _, entries := range trees {
		if data := archiveOf(f, entries); len(data) < 8000 {
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<20 || bytes.Contains(data, []byte("GNU.sparse")) {
			return // a sparse file may be of any size
		}
		both(t, data, false)
	})
}

func describeAll(entries []entry) string {
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "%c %q %q %o\n", max(e.Typeflag, '0'), e.Name, e.Linkname, e.Mode)
	}
	return b.String()
}
