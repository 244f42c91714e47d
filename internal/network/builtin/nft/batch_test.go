package nft

import (
	"strings"
	"testing"

	"github.com/google/nftables/userdata"
)

// Anything may be kept with a rule, by anyone.
func FuzzCommentOf(f *testing.F) {
	f.Add(userdata.AppendString(nil, userdata.TypeComment, "net: a"))
	f.Add(userdata.AppendString(userdata.AppendUint32(nil, 7, 1), userdata.TypeComment, "net: a"))
	f.Add([]byte{0, 200, 'x'})
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, data []byte) {
		got := commentOf(data)
		if !strings.Contains(string(data), got) {
			t.Errorf("%q of %q", got, data)
		}
	})
}

func TestCommentOf(t *testing.T) {
	data := userdata.AppendString(userdata.AppendUint32(nil, 7, 1), userdata.TypeComment, "net: a")
	if got := commentOf(data); got != "net: a" {
		t.Errorf("%q", got)
	}
}
