//go:build ignore

// gVisor's shim as `make bin/test/containerd-shim-runsc-v1` builds it, of this
// and of gVisor's own manager.go. The shim gives itself an oom_score_adj for
// which it needs CAP_SYS_RESOURCE, and does not start without it. What the
// Makefile changes in manager.go is that number, so that tests run on machines
// that do not give the capability.
package main

import (
	"context"

	"github.com/containerd/containerd/v2/pkg/shim"
	_ "gvisor.dev/gvisor/pkg/shim/v1/plugin"
)

// What manager.go takes from the package that it is part of.
const (
	kubernetesGroupAnnotation = "io.kubernetes.cri.sandbox-id"
	shimAddressPath           = "address"
)

type spec struct {
	Annotations map[string]string `json:"annotations,omitempty"`
}

func main() { shim.Run(context.Background(), NewShimManager("io.containerd.runsc.v1")) }
