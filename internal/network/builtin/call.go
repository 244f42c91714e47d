package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

// since are the versions of CNI that brought the commands.
var since = map[string]string{"ADD": "", "DEL": "", "CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}

// arguments reads what a program would find in its environment and on its
// standard input.
func arguments(env []string, conf []byte) (command string, args *skel.CmdArgs, err error) {
	vars := map[string]string{}
	for _, kv := range env {
		if key, value, ok := strings.Cut(kv, "="); ok {
			vars[key] = value
		}
	}
	command = vars["CNI_COMMAND"]
	args = &skel.CmdArgs{
		ContainerID: vars["CNI_CONTAINERID"], Netns: vars["CNI_NETNS"], IfName: vars["CNI_IFNAME"], Args: vars["CNI_ARGS"],
		Path: vars["CNI_PATH"], NetnsOverride: vars["CNI_NETNS_OVERRIDE"], StdinData: conf,
	}
	var missing []string
	need := func(keys ...string) {
		for _, key := range keys {
			if vars[key] == "" {
				missing = append(missing, key)
			}
		}
	}
	need("CNI_COMMAND")
	switch command {
	case "ADD", "CHECK":
		need("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH")
	case "DEL":
		need("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH")
	case "GC", "STATUS":
		need("CNI_PATH")
	}
	if len(missing) > 0 {
		text := fmt.Sprintf("required env variables [%s] missing", strings.Join(missing, ","))
		return "", nil, types.NewError(types.ErrInvalidEnvironmentVariables, text, "")
	}
	if command == "VERSION" {
		return command, args, nil
	}
	if _, known := since[command]; !known {
		return "", nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("unknown CNI_COMMAND: %v", command), "")
	}
	return command, args, validate(command, args)
}

// validate checks what becomes the name of a file or of an interface.
func validate(command string, args *skel.CmdArgs) error {
	if slices.Contains([]string{"ADD", "CHECK", "DEL"}, command) {
		if err := utils.ValidateContainerID(args.ContainerID); err != nil {
			return err
		}
		if err := utils.ValidateInterfaceName(args.IfName); err != nil {
			return err
		}
	}
	var net struct{ Name string }
	if err := json.Unmarshal(args.StdinData, &net); err != nil {
		return types.NewError(types.ErrDecodingFailure, fmt.Sprintf("error unmarshall network config: %v", err), "")
	}
	if net.Name == "" {
		return types.NewError(types.ErrInvalidNetworkConfig, "missing network name", "")
	}
	if err := utils.ValidateNetworkName(net.Name); err != nil {
		return err
	}
	return nil
}

// checkVersion returns the configuration's version of CNI, which must be known
// and must have the command.
func checkVersion(command string, conf []byte) (string, error) {
	want, err := create.DecodeVersion(conf)
	if err != nil {
		return "", types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	if first := since[command]; first != "" {
		has, err := version.GreaterThanOrEqualTo(want, first)
		if err != nil {
			return "", types.NewError(types.ErrDecodingFailure, err.Error(), "")
		}
		if !has {
			return "", types.NewError(types.ErrIncompatibleCNIVersion, "config version does not allow "+command, "")
		}
	}
	if err := (&version.Reconciler{}).Check(want, version.All); err != nil {
		return "", types.NewError(types.ErrIncompatibleCNIVersion, "incompatible CNI versions", err.Details())
	}
	return want, nil
}

// ipam calls the plugin that gives addresses, in process or as a program, with
// the arguments of the plugin that asks.
type ipam struct{ exec func() invoke.Exec }

// call asks the plugin. It is found where CNI_PATH says, as by a program.
func (i ipam) call(ctx context.Context, command, plugin string, args *skel.CmdArgs) ([]byte, error) {
	exec := i.exec()
	path, err := exec.FindInPath(plugin, filepath.SplitList(args.Path))
	if err != nil {
		return nil, err
	}
	a := &invoke.Args{
		Command: command, ContainerID: args.ContainerID, NetNS: args.Netns, PluginArgsStr: args.Args, IfName: args.IfName, Path: args.Path,
	}
	return exec.ExecPlugin(ctx, path, args.StdinData, a.AsEnv())
}

// Add gives addresses. A plugin that fails keeps none: that is its own affair.
func (i ipam) Add(ctx context.Context, plugin string, args *skel.CmdArgs) (types.Result, error) {
	text, err := i.call(ctx, "ADD", plugin, args)
	if err != nil {
		return nil, err
	}
	result, err := resultOf(text, args.StdinData)
	if err != nil {
		return nil, errors.Join(err, i.Del(context.WithoutCancel(ctx), plugin, args))
	}
	return result, nil
}

// resultOf reads a result; one without a version has the configuration's.
func resultOf(text, conf []byte) (types.Result, error) {
	var has struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(text, &has); err != nil {
		return nil, fmt.Errorf("result of the IPAM plugin: %w", err)
	}
	if has.CNIVersion == "" {
		var err error
		if has.CNIVersion, err = create.DecodeVersion(conf); err != nil {
			return nil, err
		}
	}
	return create.Create(has.CNIVersion, text)
}

func (i ipam) Del(ctx context.Context, plugin string, args *skel.CmdArgs) error {
	_, err := i.call(ctx, "DEL", plugin, args)
	return err
}

func (i ipam) Check(ctx context.Context, plugin string, args *skel.CmdArgs) error {
	_, err := i.call(ctx, "CHECK", plugin, args)
	return err
}

func (i ipam) Status(ctx context.Context, plugin string, args *skel.CmdArgs) error {
	_, err := i.call(ctx, "STATUS", plugin, args)
	return err
}

func (i ipam) GC(ctx context.Context, plugin string, args *skel.CmdArgs) error {
	_, err := i.call(ctx, "GC", plugin, args)
	return err
}
