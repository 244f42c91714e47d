package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The tests in this file build everything anew: make test-dist runs them.

func forDist(t *testing.T) {
	t.Helper()
	if os.Getenv("BERTH_TEST_DIST") == "" {
		t.Skip("make test-dist runs it")
	}
}

// do runs a program in dir and returns what it prints, which the test's log
// has too.
func do(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	t.Logf("%s %s\n%s", filepath.Base(name), strings.Join(args, " "), out)
	if err != nil {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return string(out)
}

// A made distribution is what make dist gives.
type made struct{ dir, tarball, deb string }

func makeDist(t *testing.T, tree string, env []string) made {
	t.Helper()
	dir := t.TempDir()
	do(t, tree, env, "scripts/dist.sh", dir)
	m := made{dir: dir}
	for pattern, into := range map[string]*string{"berth-*.tar.gz": &m.tarball, "berth_*.deb": &m.deb} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %v, %v", pattern, found, err)
		}
		*into = found[0]
	}
	do(t, dir, nil, "sha256sum", "--check", "SHA256SUMS")
	return m
}

// copyTree copies the source tree to another place, without what is built.
func copyTree(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	do(t, from, nil, "bash", "-euo", "pipefail", "-c", `git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$0"`, to)
	return to
}

func TestDist(t *testing.T) {
	forDist(t)
	here, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`v\S+`).FindString(do(t, here, nil, "bin/berth", "version", "--client"))
	env := []string{"VERSION=" + version, "SOURCE_DATE_EPOCH=1700000000"}
	first := makeDist(t, here, env)
	other := copyTree(t, here)
	t.Run("reproducible", func(t *testing.T) {
		do(t, other, env, "make", "build")
		second := makeDist(t, other, env)
		if a, b := read(t, first.dir+"/SHA256SUMS"), read(t, second.dir+"/SHA256SUMS"); a != b {
			t.Errorf("the same source at another place gives\n%s\ninstead of\n%s", b, a)
		}
	})
	t.Run("tarball", func(t *testing.T) { useTarball(t, here, first.tarball) })
	t.Run("lintian", func(t *testing.T) { do(t, ".", nil, "testdata/lintian.sh", first.deb) })
	t.Run("package", func(t *testing.T) {
		image := filepath.Join(t.TempDir(), "image.tar")
		do(t, here, nil, "go", "run", "./scripts/demoimage", image, "berth.example/busybox:dist")
		newer := newerPackage(t, other, first.deb)
		do(t, ".", nil, "testdata/package.sh", first.deb, newer, image)
	})
}

// newerPackage is the package with programs of a later version.
func newerPackage(t *testing.T, tree, deb string) string {
	t.Helper()
	do(t, tree, []string{"VERSION=v99.0.0"}, "make", "bin/berth", "bin/containerd-shim-berth-v1")
	dir := filepath.Join(t.TempDir(), "newer")
	do(t, ".", nil, "dpkg-deb", "-R", deb, dir)
	do(t, tree, nil, "cp", "bin/berth", dir+"/usr/bin/")
	do(t, tree, nil, "cp", "bin/containerd-shim-berth-v1", dir+"/usr/libexec/berth/")
	do(t, dir, nil, "sed", "-i", "s/^Version: .*/Version: 99.0.0-1/", "DEBIAN/control")
	do(t, ".", nil, "dpkg-deb", "-Znone", "--root-owner-group", "--build", dir)
	return dir + ".deb"
}

// useTarball installs what is in the tarball below a directory and runs the
// demo with it.
func useTarball(t *testing.T, here, tarball string) {
	dir := t.TempDir()
	do(t, dir, nil, "tar", "xzf", tarball)
	unpacked := filepath.Join(dir, strings.TrimSuffix(filepath.Base(tarball), ".tar.gz"))
	prefix := filepath.Join(dir, "opt")
	env := []string{"DESTDIR=", "PREFIX=" + prefix, "SYSCONFDIR=" + dir + "/etc", "UNITDIR=" + dir + "/units"}
	do(t, dir, env, unpacked+"/install.sh", "install")
	berth := prefix + "/bin/berth"
	do(t, dir, nil, berth, "version", "--client")
	do(t, dir, nil, berth, "config", "check", dir+"/etc/berth/config.toml")
	doctor := exec.Command(berth, "doctor", "--config", dir+"/etc/berth/config.toml")
	out, err := doctor.CombinedOutput()
	t.Logf("doctor: %v\n%s", err, out)
	if !strings.Contains(string(out), prefix+"/libexec/berth/containerd-shim-berth-v1") {
		t.Error("doctor does not find the installed supervisor")
	}
	do(t, here, []string{"BERTH=" + berth}, "scripts/demo.sh")
	do(t, dir, env, unpacked+"/install.sh", "uninstall")
	if _, err := os.Stat(berth); !os.IsNotExist(err) {
		t.Errorf("after uninstall: %v", err)
	}
}
