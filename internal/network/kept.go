package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

// intentVersion is the version of the files below adding/; see FORMAT.md.
const intentVersion = 1

const tmpSuffix = ".tmp"

// intent is an ADD that is under way or was cut.
type intent struct {
	Version int                      `json:"version"`
	Attach  libcni.NetworkAttachment `json:"attachment"`
}

func (n *Network) intentDir() string           { return filepath.Join(n.opts.CacheDir, "adding") }
func (n *Network) intentFile(id string) string { return filepath.Join(n.intentDir(), id+".json") }

func attachment(c *conf, rt *libcni.RuntimeConf) *libcni.NetworkAttachment {
	return &libcni.NetworkAttachment{
		ContainerID:    rt.ContainerID,
		Network:        c.list.Name,
		IfName:         rt.IfName,
		Config:         c.list.Bytes,
		NetNS:          rt.NetNS,
		CniArgs:        rt.Args,
		CapabilityArgs: rt.CapabilityArgs,
	}
}

// intend keeps what an ADD is about to do.
func (n *Network) intend(c *conf, rt *libcni.RuntimeConf) error {
	text, err := json.Marshal(intent{intentVersion, *attachment(c, rt)})
	if err != nil {
		return err
	}
	return writeFile(n.intentFile(rt.ContainerID), text)
}

// forget drops what intend kept, half written or whole.
func (n *Network) forget(id string) error {
	for _, file := range []string{n.intentFile(id), n.intentFile(id) + tmpSuffix} {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// attachments of one pod, or of all where id is empty: those that libcni keeps
// since their ADD came through, and those whose ADD did not.
func (n *Network) attachments(id string) ([]*libcni.NetworkAttachment, error) {
	atts, err := n.cni.GetCachedAttachments(id)
	if err != nil {
		return nil, fmt.Errorf("reading kept attachments: %w", err)
	}
	have := map[string]bool{}
	for _, a := range atts {
		have[a.ContainerID+" "+a.Network] = true
	}
	files := []string{n.intentFile(id)}
	if id == "" {
		if files, err = filepath.Glob(filepath.Join(n.intentDir(), "*.json")); err != nil {
			return nil, err
		}
	}
	for _, file := range files {
		a, err := n.readIntent(file)
		if err != nil {
			return nil, err
		}
		if a != nil && !have[a.ContainerID+" "+a.Network] {
			atts = append(atts, a)
		}
	}
	return atts, nil
}

// readIntent returns nil where there is none, or none that can be read: then
// DEL falls back to the current configuration.
func (n *Network) readIntent(file string) (*libcni.NetworkAttachment, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var i intent
	if err := json.Unmarshal(text, &i); err != nil || i.Version != intentVersion ||
		i.Attach.ContainerID != strings.TrimSuffix(filepath.Base(file), ".json") {
		n.opts.Log.Warn("ignoring a damaged record of an ADD under way", "file", file, "err", err)
		return nil, nil
	}
	return &i.Attach, nil
}

// writeFile replaces file as a whole. It does not sync: after a power cut
// nothing that it tells of exists, but reserved addresses, which GC finds.
func writeFile(file string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	tmp := file + tmpSuffix
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}
