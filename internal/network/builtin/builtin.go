// Package builtin answers the calls of CNI plugins in process.
//
// Purpose: the reference plugins bridge, host-local, portmap and loopback
// without executing them, for configurations with keys that are known here.
// Results, errors, rules and files are those of the reference at version
// 1.9.1, so that a call may be answered here and the next one by the program.
//
// Invariants:
//   - A call is answered here as a whole or not at all. Whether it is, is
//     decided by the configuration alone, so ADD and DEL come to the same.
//   - Errors are CNI errors, as a program would print them.
//
// Concurrency: Plugins is safe for concurrent use, except that the caller
// serialises the calls for one container. What is done in a container's
// namespace is done on threads that leave it again or end.
package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"berth/internal/network/builtin/bridge"
	"berth/internal/network/builtin/hostlocal"
	"berth/internal/network/builtin/loopback"
	"berth/internal/network/builtin/nft"
	"berth/internal/network/builtin/portmap"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// plugin is one type of plugin.
type plugin interface {
	// Unsupported names what of a configuration only the program may know. It
	// is empty where the plugin can be asked, be it for an error.
	Unsupported(conf []byte) string
	// Add leaves nothing behind where it fails.
	Add(context.Context, *skel.CmdArgs) (types.Result, error)
	// Del may be repeated.
	Del(context.Context, *skel.CmdArgs) error
	Check(context.Context, *skel.CmdArgs) error
	Status(context.Context, *skel.CmdArgs) error
	GC(context.Context, *skel.CmdArgs) error
}

// Plugins are the types that are answered here.
type Plugins struct {
	types map[string]plugin
	log   *slog.Logger
	nft   nft.Pool
	// bridge is the one of types that has something to wait for.
	bridge *bridge.Plugin
	told   sync.Map // network and type whose execution was logged
}

// New returns them. IPAM plugins that are none of them are executed by exec,
// which may itself ask these Plugins first.
func New(exec func() invoke.Exec, log *slog.Logger) *Plugins {
	p := &Plugins{log: log}
	p.bridge = &bridge.Plugin{IPAM: ipam{exec}, NFT: &p.nft}
	p.types = map[string]plugin{
		"bridge":     p.bridge,
		"host-local": &hostlocal.Plugin{},
		"portmap":    &portmap.Plugin{Log: log, NFT: &p.nft},
		"loopback":   loopback.Plugin{},
	}
	return p
}

// Close gives back what is kept from call to call, once no call is under way.
// Closing twice is safe.
func (p *Plugins) Close() error {
	if p == nil {
		return nil
	}
	p.bridge.Close()
	return p.nft.Close()
}

// Has tells whether there is a plugin of that type here. Where Plugins is nil
// there are none.
func (p *Plugins) Has(kind string) bool { return p != nil && p.types[kind] != nil }

// Knows tells whether calls of a plugin of that type with that configuration
// are answered here.
func (p *Plugins) Knows(kind string, conf []byte) bool {
	return p.Has(kind) && p.types[kind].Unsupported(conf) == ""
}

// NFTables tells whether the kernel has nftables, which is all that is needed
// for masquerading and host ports with that backend.
func (p *Plugins) NFTables() bool { return p != nil && p.nft.Supported() }

// Answers tells whether a call of a plugin of that type is answered here. Of
// one that is not, though the type is known, the log tells why, once.
func (p *Plugins) Answers(kind string, conf []byte) bool {
	if !p.Has(kind) {
		return false
	}
	key := p.types[kind].Unsupported(conf)
	if key == "" {
		return true
	}
	var net struct{ Name string }
	_ = json.Unmarshal(conf, &net) // for the log alone
	if _, told := p.told.LoadOrStore(net.Name+" "+kind, true); !told {
		p.log.Info("a CNI plugin is executed as a program, for its configuration has a key that is not supported in process",
			"network", net.Name, "type", kind, "key", key)
	}
	return false
}

// Call answers a call as the program would: env and conf are what it would
// get, the answer is what it would print. An error has a *types.Error in it.
func (p *Plugins) Call(ctx context.Context, kind string, conf []byte, env []string) ([]byte, error) {
	plugin := p.types[kind]
	if plugin == nil {
		return nil, types.NewError(types.ErrInternal, fmt.Sprintf("no plugin %q in process", kind), "")
	}
	command, args, err := arguments(env, conf)
	if err != nil {
		return nil, err
	}
	if command == "VERSION" {
		return json.Marshal(version.All)
	}
	want, err := checkVersion(command, conf)
	if err != nil {
		return nil, err
	}
	switch command {
	case "ADD":
		if err := checkNamespace(args); err != nil {
			return nil, err
		}
		result, err := plugin.Add(ctx, args)
		if err != nil {
			return nil, callError(err)
		}
		return render(result, want)
	case "DEL":
		if err := checkNamespace(args); err != nil {
			return nil, err
		}
		err = plugin.Del(ctx, args)
	case "CHECK":
		err = plugin.Check(ctx, args)
	case "STATUS":
		err = plugin.Status(ctx, args)
	case "GC":
		err = plugin.GC(ctx, args)
	}
	return nil, callError(err)
}

// render writes a result in the version of CNI that the configuration has.
func render(result types.Result, want string) ([]byte, error) {
	as, err := result.GetAsVersion(want)
	if err != nil {
		return nil, callError(err)
	}
	text, err := json.Marshal(as)
	if err != nil {
		return nil, callError(err)
	}
	return text, nil
}

// failure is a CNI error with what caused it.
type failure struct {
	said  *types.Error
	cause error
}

func (f failure) Error() string   { return f.said.Error() }
func (f failure) Unwrap() []error { return []error{f.said, f.cause} }

// callError makes err a CNI error unless it is one.
func callError(err error) error {
	var said *types.Error
	if err == nil || errors.As(err, &said) {
		return err
	}
	return failure{types.NewError(types.ErrInternal, err.Error(), ""), err}
}

// sameFile tells whether two paths lead to one namespace.
func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// checkNamespace refuses the daemon's own namespace for a container's. The
// reference tells of it too, after it has done the work there.
func checkNamespace(args *skel.CmdArgs) error {
	if args.NetnsOverride == "1" || args.NetnsOverride == "TRUE" || args.NetnsOverride == "true" || args.Netns == "" {
		return nil
	}
	if sameFile(filepath.Clean(args.Netns), "/proc/thread-self/ns/net") {
		return types.NewError(types.ErrInvalidNetNS, "plugin's netns and netns from CNI_NETNS should not be the same", "")
	}
	return nil
}
