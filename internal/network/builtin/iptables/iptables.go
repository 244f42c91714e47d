// Package iptables changes the nat tables of iptables and ip6tables.
//
// Purpose: the kernel's side of iptables is the program's own affair (it has
// two of them), so this executes it: once to read a table, once to change it.
//
// Invariants:
//   - A change is one execution of iptables-restore: it applies as a whole or
//     not at all. It never names a chain in a way that empties one that is
//     there already, and is built anew from what is there when it fails.
//   - Rules are written the way iptables-save prints them, so that a rule that
//     is there is known by its text.
//
// Concurrency: no state but which programs work; safe for concurrent use. The programs take the lock of
// iptables themselves.
package iptables

import (
	"bytes"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"berth/internal/network/builtin/nft"

	"github.com/containerd/errdefs"
)

const (
	// changeTries is how often a change is built anew: another program has
	// changed the same table in between.
	changeTries = 10
	maxOutput   = 64 << 20 // of iptables-save; a large cluster's services are a few MiB
	maxErrors   = 4 << 10
	killDelay   = time.Second
	sbinPath    = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
)

// chainLength is that of every chain of the reference plugins that belongs to
// a container.
const chainLength = 28

// ChainName is the name of a container's chain on a network. The kind is
// empty for masquerading.
func ChainName(kind, network, containerID string) string {
	return fmt.Sprintf("CNI-%s%x", kind, sha512.Sum512([]byte(network+containerID)))[:chainLength]
}

// Nat is what a nat table holds.
type Nat struct {
	chains []string
	rules  []string // "-A CHAIN …", as iptables-save prints them
}

// HasChain tells whether there is such a chain.
func (n *Nat) HasChain(chain string) bool { return slices.Contains(n.chains, chain) }

// HasRule tells whether there is such a rule.
func (n *Nat) HasRule(rule string) bool { return slices.Contains(n.rules, rule) }

// JumpsTo are the rules that lead to a chain.
func (n *Nat) JumpsTo(chain string) []string {
	var found []string
	for _, r := range n.rules {
		if strings.HasSuffix(r, " -j "+chain) || strings.Contains(r, " -j "+chain+" ") {
			found = append(found, r)
		}
	}
	return found
}

// Without are the commands that remove a chain and what leads to it; none
// where it is not there.
func (n *Nat) Without(chain string) []string {
	if !n.HasChain(chain) {
		return nil
	}
	var lines []string
	for _, r := range n.JumpsTo(chain) {
		lines = append(lines, "-D"+strings.TrimPrefix(r, "-A"))
	}
	return append(lines, "-F "+chain, "-X "+chain)
}

// With are the commands that add a chain, unless it is there, and those of
// the rules that are not there.
func (n *Nat) With(chain string, rules ...string) []string {
	var lines []string
	if !n.HasChain(chain) {
		lines = append(lines, "-N "+chain)
	}
	for _, r := range rules {
		if !n.HasRule(r) {
			lines = append(lines, r)
		}
	}
	return lines
}

// Quote writes a word the way iptables-save does.
func Quote(word string) string {
	if !strings.ContainsFunc(word, func(r rune) bool {
		return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		return word
	}
	return `"` + strings.NewReplacer(`"`, `\"`, `\`, `\\`, `'`, `\'`).Replace(word) + `"`
}

// Programs execute iptables for one call of a plugin.
type Programs struct {
	// Env is added to the programs' environment. By it, what a dead daemon
	// left running is known again.
	Env []string
}

// Read returns the nat table.
func (p Programs) Read(ctx context.Context, v6 bool) (*Nat, error) {
	out, err := p.run(ctx, v6, "-save", "", "-t", "nat")
	if err != nil {
		return nil, err
	}
	n := &Nat{}
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n ")
		switch {
		case strings.HasPrefix(line, ":"):
			chain, _, _ := strings.Cut(line[1:], " ")
			n.chains = append(n.chains, chain)
		case strings.HasPrefix(line, "-A "):
			n.rules = append(n.rules, line)
		}
	}
	return n, nil
}

// Change applies the commands that fn gives for what is there. It calls fn
// again when they do not apply, for then another has changed the table.
func (p Programs) Change(ctx context.Context, v6 bool, fn func(*Nat) []string) error {
	var failed error
	var last []string
	for range changeTries {
		have, err := p.Read(ctx, v6)
		if err != nil {
			return errors.Join(failed, err)
		}
		lines := fn(have)
		if len(lines) == 0 {
			return nil
		}
		if failed != nil && slices.Equal(lines, last) {
			return failed // what is there has not changed: the commands are at fault
		}
		input := "*nat\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
		if _, failed = p.run(ctx, v6, "-restore", input, "--noflush", "--wait"); failed == nil {
			return nil
		}
		last = lines
	}
	return failed
}

// MayHave tells, without executing anything, whether a nat table may hold a
// chain: iptables keeps it in nftables, or, the older one, in tables that the
// kernel lists.
func MayHave(kernel *nft.Pool, v6 bool, chains ...string) (has bool, err error) {
	table, names := nft.Table{Family: nft.IPv4, Name: "nat"}, "ip_tables_names"
	if v6 {
		table.Family, names = nft.IPv6, "ip6_tables_names"
	}
	list, err := os.ReadFile(filepath.Join("/proc/thread-self/net", names))
	if err == nil && slices.Contains(strings.Fields(string(list)), "nat") {
		return true, nil
	}
	err = kernel.With(func(c *nft.Conn) (err error) {
		for _, chain := range chains {
			if has, err = c.HasChain(table, chain); has || err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, syscall.EPROTONOSUPPORT) {
		return false, nil // a kernel without nftables
	}
	return has, err
}

// usable are the programs that were seen to work.
var usable sync.Map

// Supported tells whether iptables is installed and works here.
func (p Programs) Supported(ctx context.Context) bool {
	path, err := find("iptables")
	if err != nil {
		return false
	}
	if _, ok := usable.Load(path); ok {
		return true
	}
	if _, err := p.run(ctx, false, "", "", "-t", "filter", "-S", "INPUT", "1", "--wait"); err != nil {
		return false
	}
	usable.Store(path, true)
	return true
}

// find looks where plugins are looked for, and where a daemon may have been
// started without.
func find(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for dir := range strings.SplitSeq(sbinPath, ":") {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: install iptables, or choose the nftables backend: %w", name, errdefs.ErrFailedPrecondition)
}

func (p Programs) run(ctx context.Context, v6 bool, kind, stdin string, args ...string) (string, error) {
	name := "iptables" + kind
	if v6 {
		name = "ip6tables" + kind
	}
	path, err := find(name)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append([]string{"PATH=" + sbinPath}, p.Env...)
	cmd.Stdin = strings.NewReader(stdin)
	stdout, stderr := &limited{max: maxOutput}, &limited{max: maxErrors}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killDelay
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("%s %s was killed, it took too long: does another process hold the lock of iptables? %w", name, strings.Join(args, " "), ctx.Err())
	case err != nil:
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	case stdout.lost:
		return "", fmt.Errorf("%s prints more than %d bytes: %w", name, maxOutput, errdefs.ErrOutOfRange)
	}
	return stdout.String(), nil
}

// limited keeps the first max bytes.
type limited struct {
	bytes.Buffer
	max  int
	lost bool
}

func (l *limited) Write(p []byte) (int, error) {
	keep := min(len(p), l.max-l.Len())
	l.lost = l.lost || keep < len(p)
	l.Buffer.Write(p[:keep])
	return len(p), nil
}
