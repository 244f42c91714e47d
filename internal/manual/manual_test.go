package manual

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"berth/internal/config"
)

// sample is a command with all that a page has a place for.
func sample() *cobra.Command {
	run := func(*cobra.Command, []string) {}
	root := &cobra.Command{Use: "tool", Short: "Do things", Long: "Do things.\n\n.dots begin lines;\n'quotes' too, and C:\\paths.\n\n  verbatim --it\n\nEnd.", Run: run}
	root.PersistentFlags().String("address", "", "`SOCKET` of the daemon")
	root.AddGroup(&cobra.Group{ID: "g", Title: "Group:"})
	sub := &cobra.Command{Use: "sub FILE", Short: "Do one thing", GroupID: "g", Example: "  tool sub -n 3", Aliases: []string{"one"}, Run: run}
	sub.Flags().IntP("number", "n", 2, "how many")
	sub.Flags().Bool("force", false, "even if")
	hidden := &cobra.Command{Use: "hidden", Hidden: true, Run: run}
	root.AddCommand(sub, hidden)
	return root
}

func TestCommandPages(t *testing.T) {
	var files []string
	texts := map[string]string{}
	for _, p := range Commands(sample(), "v1-x") {
		files = append(files, p.File())
		texts[p.File()] = p.Text
	}
	if diff := cmp.Diff([]string{"tool.1", "tool-completion.1", "tool-sub.1"}, files); diff != "" {
		t.Error(diff)
	}
	for file, wants := range map[string][]string{
		"tool.1": {`.TH "TOOL" "1" "" "berth v1\-x" "berth"`, "\n\\&.dots begin", "\n\\&'quotes' too, and C:\\epaths", ".nf\n.ft CR\n  verbatim \\-\\-it\n.ft R\n.fi\n.PP\nEnd.",
			".SS \"Group\"\n.TP\n\\fBtool\\-sub\\fR(1)\nDo one thing\n", "\\fB\\-\\-address\\fR \\fISOCKET\\fR\nSOCKET of the daemon\n"},
		"tool-sub.1": {"\\fBtool sub\\fR FILE", "\\fB\\-n\\fR, \\fB\\-\\-number\\fR \\fIint\\fR\nhow many (default 2)\n", "\\fB\\-\\-force\\fR\neven if\n", "Also called one.", ".SH \"OPTIONS OF ALL COMMANDS\""},
	} {
		for _, want := range wants {
			if !strings.Contains(texts[file], want) {
				t.Errorf("%s lacks %q:\n%s", file, want, texts[file])
			}
		}
	}
}

// No key of the configuration is left out, nor a word about it.
func TestConfigPageHasEverything(t *testing.T) {
	document := string(config.Document())
	page := Config(config.Document(), "/etc/berth/config.toml", "v1")
	words := regexp.MustCompile(`[A-Za-z0-9_./:]+`)
	plain := strings.NewReplacer(`\-`, "-", `\e`, `\`, `\(dq`, `"`, `\fB`, "", `\fR`, "", `\&`, "").Replace(page.Text)
	has := map[string]bool{}
	for _, w := range words.FindAllString(plain, -1) {
		has[w] = true
	}
	table := ""
	for _, line := range strings.Split(document, "\n") {
		if name, ok := strings.CutPrefix(line, "["); ok {
			table = strings.TrimSuffix(name, "]") + "."
		}
		if m := assignment.FindStringSubmatch(line); m != nil {
			if !strings.Contains(plain, "\n"+table+m[1]+" = "+m[2]+"\n") {
				t.Errorf("the page lacks %s%s = %s", table, m[1], m[2])
			}
			continue
		}
		for _, w := range words.FindAllString(line, -1) {
			if !has[w] {
				t.Errorf("the page lacks the word %q of %q", w, line)
			}
		}
	}
}

// groff finds no fault with the pages, where it is installed.
func TestPagesAreSound(t *testing.T) {
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip("groff is not installed")
	}
	pages := append(Commands(sample(), "v1"), Config(config.Document(), "/etc/berth/config.toml", "v1"))
	for _, p := range pages {
		cmd := exec.Command(groff, "-man", "-Tutf8", "-ww", "-z")
		cmd.Stdin, cmd.Env = strings.NewReader(p.Text), append(os.Environ(), "LC_ALL=C")
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", p.File(), err, out)
		}
	}
}
