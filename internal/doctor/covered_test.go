package doctor

import (
	"testing"

	"berth/internal/config"
)

func TestWholeProc(t *testing.T) {
	const covered = "22 1 0:21 / /proc rw - proc proc rw\n23 22 0:22 / /proc/sys/fs/binfmt_misc rw - autofs x rw\n24 22 0:23 / /proc/kcore rw - tmpfs x rw"
	for mounts, want := range map[string]string{
		"22 1 0:21 / /proc rw - proc proc rw\n23 22 0:22 / /proc/sys/fs/binfmt_misc rw - autofs x rw": "",
		covered: "warn /proc: /proc/kcore is mounted over",
		covered + "\n25 1 0:24 / /run/proc rw - proc proc rw": "",
	} {
		e := &exam{ctx: t.Context(), Options: Options{Config: config.Default(), Root: machine(t, map[string]string{"proc/self/mountinfo": mounts})}}
		if got := look(t, e, e.wholeProc); got != want {
			t.Errorf("%s: %q, want %q", mounts, got, want)
		}
	}
}
