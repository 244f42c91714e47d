package network

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
)

// statusAge is how long an answer of the plugins to STATUS holds: clients ask
// every few seconds, each time plugins would be executed.
const statusAge = 10 * time.Second

// statusTimeout is less than clients wait for the whole Status.
const statusTimeout = 5 * time.Second

// ReasonNotReady is the reason of the condition NetworkReady that the kubelet
// and its users know.
const ReasonNotReady = "NetworkPluginNotReady"

// Status tells whether pods can be attached.
type Status struct {
	Ready bool
	// Reason and Message are empty where Ready.
	Reason, Message string
	// Network and File name the configuration; a built-in one has no file.
	Network, File string
	// Conflist is the configuration, for those who ask for details.
	Conflist json.RawMessage
}

// Status reports on the current configuration, its plugins being installed,
// and what they say of themselves where their version of CNI has STATUS.
func (n *Network) Status(ctx context.Context) Status {
	c, err := n.current()
	if err != nil {
		return notReady(Status{}, err)
	}
	s := Status{Ready: true, Network: c.list.Name, File: c.file, Conflist: json.RawMessage(c.list.Bytes)}
	if err := n.installed(c); err != nil {
		return notReady(s, err)
	}
	if c.builtIn {
		return s // its plugins wait for nobody
	}
	if err := n.statusCache.get(ctx, c, func() error { return n.askStatus(ctx, c) }); err != nil {
		return notReady(s, fmt.Errorf("network %s: %w", c, err))
	}
	return s
}

// installed tells whether every plugin of a configuration is there.
func (n *Network) installed(c *conf) error {
	for _, p := range c.list.Plugins {
		if n.exec.inProcess.Knows(p.Network.Type, p.Bytes) {
			continue
		}
		if _, err := n.exec.programs.FindInPath(p.Network.Type, n.libcniFor(c).Path); err != nil {
			return fmt.Errorf("network %s: %w", c, err)
		}
	}
	return nil
}

func notReady(s Status, err error) Status {
	s.Ready, s.Reason, s.Message = false, ReasonNotReady, err.Error()
	return s
}

func (n *Network) askStatus(ctx context.Context, c *conf) error {
	if has, err := version.GreaterThanOrEqualTo(c.list.CNIVersion, "1.1.0"); err != nil || !has {
		return nil
	}
	// The answer is for others too: a caller that goes away does not spoil it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(statusTimeout, n.opts.Timeout))
	defer cancel()
	return n.libcniFor(c).GetStatusNetworkList(ctx, c.list)
}

// statusCache keeps the last answer and lets one caller at a time ask anew.
type statusCache struct {
	mu      sync.Mutex // guards all; not held while plugins run
	of      *libcni.NetworkConfigList
	at      time.Time
	err     error
	running chan struct{} // closed when the answer is there
}

func (s *statusCache) get(ctx context.Context, c *conf, ask func() error) error {
	s.mu.Lock()
	for s.running != nil {
		running := s.running
		s.mu.Unlock()
		select {
		case <-running:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the plugins' STATUS: %w", ctx.Err())
		}
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	if s.of == c.list && time.Since(s.at) < statusAge {
		return s.err
	}
	done := make(chan struct{})
	s.running = done
	s.mu.Unlock()
	err := ask()
	s.mu.Lock()
	s.of, s.at, s.err, s.running = c.list, time.Now(), err, nil
	close(done)
	return err
}
