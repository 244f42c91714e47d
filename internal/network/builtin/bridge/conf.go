package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// defaultBridge is the bridge's name unless the configuration gives one.
const defaultBridge = "cni0"

const maxVLAN = 4094

// conf is a configuration, with the keys of the reference plugin.
type conf struct {
	types.PluginConf
	Bridge                    string  `json:"bridge"`
	IsGateway                 bool    `json:"isGateway"`
	IsDefaultGateway          bool    `json:"isDefaultGateway"`
	ForceAddress              bool    `json:"forceAddress"`
	IPMasq                    bool    `json:"ipMasq"`
	IPMasqBackend             *string `json:"ipMasqBackend"`
	MTU                       int     `json:"mtu"`
	HairpinMode               bool    `json:"hairpinMode"`
	PromiscMode               bool    `json:"promiscMode"`
	VLAN                      int     `json:"vlan"`
	VLANTrunk                 []trunk `json:"vlanTrunk"`
	PreserveDefaultVLAN       bool    `json:"preserveDefaultVlan"`
	MacSpoofCheck             bool    `json:"macspoofchk"`
	EnableDAD                 bool    `json:"enabledad"`
	DisableContainerInterface bool    `json:"disableContainerInterface"`
	PortIsolation             bool    `json:"portIsolation"`
	Args                      struct {
		CNI struct {
			MAC string `json:"mac"`
		} `json:"cni"`
	} `json:"args"`
	RuntimeConfig struct {
		MAC string `json:"mac"`
	} `json:"runtimeConfig"`

	mac    string
	trunks []int // all VLANs of VLANTrunk, sorted
}

// trunk is one VLAN, or a range of them, or both.
type trunk struct {
	MinID *int `json:"minID"`
	MaxID *int `json:"maxID"`
	ID    *int `json:"id"`
}

var keys = []string{
	"cniVersion", "name", "type", "capabilities", "args", "ipam", "dns", "prevResult", "runtimeConfig", "cni.dev/valid-attachments", "cni.dev/attachments",
	"bridge", "isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "ipMasqBackend", "mtu", "hairpinMode", "promiscMode",
	"vlan", "vlanTrunk", "preserveDefaultVlan", "macspoofchk", "enabledad", "disableContainerInterface", "portIsolation",
}

// Unsupported names the first key of a configuration that only the program may
// know, or is empty. The check of MAC addresses, which has nftables rules of
// its own, is the program's.
func (*Plugin) Unsupported(text []byte) string {
	var given map[string]json.RawMessage
	if json.Unmarshal(text, &given) != nil {
		return ""
	}
	for _, key := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(keys, key) {
			return key
		}
	}
	if on, has := given["macspoofchk"]; has && string(on) != "false" {
		return "macspoofchk"
	}
	return ""
}

func load(args *skel.CmdArgs) (*conf, error) {
	c := &conf{Bridge: defaultBridge}
	if err := json.Unmarshal(args.StdinData, c); err != nil {
		return nil, fmt.Errorf("failed to load netconf: %w", err)
	}
	if c.VLAN < 0 || c.VLAN > maxVLAN {
		return nil, fmt.Errorf("invalid VLAN ID %d (must be between 0 and %d)", c.VLAN, maxVLAN)
	}
	var err error
	if c.trunks, err = vlansOf(c.VLANTrunk); err != nil {
		return nil, err
	}
	if args.Args != "" {
		var env struct {
			types.CommonArgs
			MAC types.UnmarshallableString `json:"mac"`
		}
		if err := types.LoadArgs(args.Args, &env); err != nil {
			return nil, err
		}
		c.mac = string(env.MAC)
	}
	for _, mac := range []string{c.Args.CNI.MAC, c.RuntimeConfig.MAC} {
		if mac != "" {
			c.mac = mac
		}
	}
	return c, nil
}

// check tells of what an ADD cannot do.
func (c *conf) check() error {
	c.IsGateway = c.IsGateway || c.IsDefaultGateway
	switch {
	case c.layer3() && c.DisableContainerInterface:
		return errors.New("cannot use IPAM when DisableContainerInterface flag is set")
	case c.HairpinMode && c.PromiscMode:
		return errors.New("cannot set hairpin mode and promiscuous mode at the same time")
	}
	return nil
}

// layer3 tells whether the container gets addresses.
func (c *conf) layer3() bool { return c.IPAM.Type != "" }

func (c *conf) hasDNS() bool {
	return c.DNS.Nameservers != nil || c.DNS.Search != nil || c.DNS.Options != nil || c.DNS.Domain != ""
}

func vlansOf(trunks []trunk) ([]int, error) {
	set := map[int]bool{}
	valid := func(id int) bool { return id > 0 && id <= maxVLAN }
	for _, t := range trunks {
		switch {
		case t.MinID != nil && t.MaxID == nil:
			return nil, errors.New("minID and maxID should be configured simultaneously, maxID is missing")
		case t.MinID == nil && t.MaxID != nil:
			return nil, errors.New("minID and maxID should be configured simultaneously, minID is missing")
		case t.MinID != nil && !valid(*t.MinID):
			return nil, errors.New("incorrect trunk minID parameter")
		case t.MaxID != nil && !valid(*t.MaxID):
			return nil, errors.New("incorrect trunk maxID parameter")
		case t.MinID != nil && *t.MaxID < *t.MinID:
			return nil, errors.New("minID is greater than maxID in trunk parameter")
		case t.ID != nil && !valid(*t.ID):
			return nil, errors.New("incorrect trunk id parameter")
		}
		if t.MinID != nil {
			for id := *t.MinID; id <= *t.MaxID; id++ {
				set[id] = true
			}
		}
		if t.ID != nil {
			set[*t.ID] = true
		}
	}
	return slices.Sorted(maps.Keys(set)), nil
}

// nextAddr is the first address of a network after that of the network itself:
// a gateway's, unless IPAM names one.
func nextAddr(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }
