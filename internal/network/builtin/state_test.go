package builtin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"berth/internal/host"
)

var (
	random = regexp.MustCompile(`veth[0-9a-f]{8}`)
	mac    = regexp.MustCompile(`\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b`)
	eui    = regexp.MustCompile(`fe80::[0-9a-f:]+`)
	handle = regexp.MustCompile(`(?m)^((?:inet|ip|ip6) \w+ \w+) \d+( \d+)?`)
	// moving are the values that change by themselves.
	moving = []string{
		"ifindex", "link_index", "link", "link_netnsid", "link_netns", "tentative", "gc_timer", "hello_timer", "tcn_timer", "topology_change_timer",
		"forward_delay_timer", "hold_timer", "message_age_timer", "bridge_id", "root_id", "designated_bridge", "designated_root", "root", "dynamic",
		"id", "no", "designated_port", "valid_life_time", "preferred_life_time", "ifi_ifindex",
		"config_pending", "topology_change_ack", "state_change",
	}
)

// output runs a command on the calling thread's host; one that fails counts as
// one that prints nothing.
func output(args ...string) string {
	out, _ := exec.Command(args[0], args[1:]...).Output()
	return string(out)
}

// stable renders JSON of ip or bridge, without what moves.
func stable(t testing.TB, args ...string) string {
	t.Helper()
	text := output(args...)
	if strings.TrimSpace(text) == "" {
		return ""
	}
	var list []any
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, text)
	}
	var all []string
	for _, v := range list {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(still(v)); err != nil {
			t.Fatal(err)
		}
		s := strings.TrimSpace(b.String())
		s = random.ReplaceAllString(mac.ReplaceAllString(eui.ReplaceAllString(s, "FE80"), "MAC"), "vethX")
		if !strings.Contains(s, `"fe80::`) && !strings.Contains(s, `"multicast"`) && !strings.Contains(s, `"dst":"FE80`) {
			all = append(all, strings.ReplaceAll(s, `,"`, ",\n  \""))
		}
	}
	slices.Sort(all)
	return strings.Join(all, "\n") + "\n"
}

func still(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for _, key := range moving {
			delete(v, key)
		}
		if info, ok := v["linkinfo"].(map[string]any); ok && info["info_kind"] == "bridge" {
			delete(v, "operstate") // down some time after the last port went
		}
		if flags, ok := v["flags"].([]any); ok {
			v["flags"] = slices.DeleteFunc(flags, func(f any) bool {
				return slices.Contains([]any{"NO-CARRIER", "LOWER_UP", "linkdown"}, f)
			})
		}
		for key := range v {
			v[key] = still(v[key])
		}
	case []any:
		for i := range v {
			v[i] = still(v[i])
		}
	}
	return v
}

// links is a namespace's links, addresses, routes and sysctls as text.
func links(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, cmd := range []string{
		"ip -d -j addr", "ip -4 -j route show table all", "ip -6 -j route", "bridge -j vlan",
	} {
		b.WriteString("# " + cmd + "\n" + stable(t, strings.Fields(cmd)...))
	}
	b.WriteString("# sysctls\n")
	read := func(pattern string) {
		files, _ := filepath.Glob("/proc/sys/net/" + pattern)
		for _, file := range files {
			value, err := os.ReadFile(file)
			if errors.Is(err, os.ErrNotExist) {
				continue // a link of a namespace that is going
			}
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "%s=%s", random.ReplaceAllString(strings.TrimPrefix(file, "/proc/sys/net/"), "vethX"), value)
		}
	}
	read("ipv4/ip_forward")
	for _, name := range []string{"arp_notify", "route_localnet"} {
		read("ipv4/conf/*/" + name)
	}
	for _, name := range []string{"accept_ra", "accept_dad", "enhanced_dad", "keep_addr_on_down", "disable_ipv6", "forwarding"} {
		read("ipv6/conf/*/" + name)
	}
	return b.String()
}

// rules are the host's rules as text: as nft and iptables print them, and as
// the kernel has them.
func rules() string {
	var b strings.Builder
	for _, table := range [][2]string{{"inet", "cni_plugins_masquerade"}, {"ip", "cni_hostport"}, {"ip6", "cni_hostport"}} {
		b.WriteString(output("nft", "-s", "list", "table", table[0], table[1]))
		b.WriteString(handle.ReplaceAllString(output("nft", "-s", "--debug=netlink", "list", "table", table[0], table[1]), "$1"))
	}
	for _, cmd := range []string{"iptables-save", "ip6tables-save"} {
		b.WriteString(lines(output(cmd, "-t", "nat"), func(l string) bool { return !strings.HasPrefix(l, "#") }))
	}
	return b.String()
}

// store is what host-local keeps, as text.
func store(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return nil
		}
		text, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %s %q\n", strings.TrimPrefix(path, dir), info.Mode(), text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// state is all of it, with the pods' namespaces.
func (w *world) state() string {
	w.t.Helper()
	var b strings.Builder
	b.WriteString("## host\n" + links(w.t) + "## rules\n" + rules() + "\n## store\n" + store(w.t, filepath.Join(w.dir, "store")))
	for _, pod := range w.pods {
		err := host.InNetNS(pod, func() error {
			b.WriteString("## " + filepath.Base(filepath.Dir(pod)) + "\n" + links(w.t))
			return nil
		})
		if err != nil {
			fmt.Fprintf(&b, "## %s is gone\n", filepath.Base(filepath.Dir(pod)))
		}
	}
	return strings.ReplaceAll(b.String(), w.dir, "DIR")
}

// resultText is a result as text.
func (w *world) resultText(r any) string {
	w.t.Helper()
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		w.t.Fatal(err)
	}
	s := strings.ReplaceAll(string(text), w.dir, "DIR")
	return random.ReplaceAllString(mac.ReplaceAllString(s, "MAC"), "vethX")
}
