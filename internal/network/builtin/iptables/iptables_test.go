package iptables

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{
		"plain-word_1":      "plain-word_1",
		"two words":         `"two words"`,
		`name: "n" id: 'i'`: `"name: \"n\" id: \'i\'"`,
		`back\slash`:        `"back\\slash"`,
		"":                  "",
	} {
		if got := Quote(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

// As the reference's own tests have them.
func TestChainName(t *testing.T) {
	for _, c := range []struct{ kind, network, id, want string }{
		{"", "test", "1234", "CNI-2bbe0c48b91a7d1b8a6753a8"},
		{"DN-", "test", "1234", "CNI-DN-2bbe0c48b91a7d1b8a675"},
	} {
		if got := ChainName(c.kind, c.network, c.id); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

// What is there is neither added again nor emptied; what leads to a chain is
// removed before it.
func TestWithAndWithout(t *testing.T) {
	have := &Nat{chains: []string{"A", "AB"}, rules: []string{"-A POSTROUTING -s 10.0.0.2/32 -j A", "-A POSTROUTING -j AB", "-A A -j MASQUERADE"}}
	for _, c := range []struct{ got, want []string }{
		{have.With("A", "-A A -j MASQUERADE", "-A A -j ACCEPT"), []string{"-A A -j ACCEPT"}},
		{have.With("B", "-A B -j ACCEPT"), []string{"-N B", "-A B -j ACCEPT"}},
		{have.Without("A"), []string{"-D POSTROUTING -s 10.0.0.2/32 -j A", "-F A", "-X A"}},
		{have.Without("B"), nil},
	} {
		if diff := cmp.Diff(c.want, c.got); diff != "" {
			t.Error(diff)
		}
	}
}
