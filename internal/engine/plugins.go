package engine

// The plugins that the embedded containerd is made of. What is not here is not
// in it: no CRI plugin, no tracing exporter, no metrics or debug server, no
// monitors that poll cgroups. The garbage collection's scheduler and the overlay
// snapshotter's plugin are our own: see collect.go, and runtime.go for tasks.
import (
	// Task options of the runc shim, so that they can be decoded.
	_ "github.com/containerd/containerd/api/types/runc/options"

	_ "github.com/containerd/containerd/v2/core/runtime/v2"
	_ "github.com/containerd/containerd/v2/plugins/content/local/plugin"
	_ "github.com/containerd/containerd/v2/plugins/diff/walking/plugin"
	_ "github.com/containerd/containerd/v2/plugins/events"
	_ "github.com/containerd/containerd/v2/plugins/leases"
	_ "github.com/containerd/containerd/v2/plugins/metadata"
	_ "github.com/containerd/containerd/v2/plugins/mount"
	_ "github.com/containerd/containerd/v2/plugins/sandbox"
	_ "github.com/containerd/containerd/v2/plugins/server/grpc"
	_ "github.com/containerd/containerd/v2/plugins/server/ttrpc"
	_ "github.com/containerd/containerd/v2/plugins/services/containers"
	_ "github.com/containerd/containerd/v2/plugins/services/content"
	_ "github.com/containerd/containerd/v2/plugins/services/diff"
	_ "github.com/containerd/containerd/v2/plugins/services/events"
	_ "github.com/containerd/containerd/v2/plugins/services/healthcheck"
	_ "github.com/containerd/containerd/v2/plugins/services/images"
	_ "github.com/containerd/containerd/v2/plugins/services/introspection"
	_ "github.com/containerd/containerd/v2/plugins/services/leases"
	_ "github.com/containerd/containerd/v2/plugins/services/mounts"
	_ "github.com/containerd/containerd/v2/plugins/services/namespaces"
	_ "github.com/containerd/containerd/v2/plugins/services/sandbox"
	_ "github.com/containerd/containerd/v2/plugins/services/snapshots"
	_ "github.com/containerd/containerd/v2/plugins/services/streaming"
	_ "github.com/containerd/containerd/v2/plugins/services/tasks"
	_ "github.com/containerd/containerd/v2/plugins/services/transfer"
	_ "github.com/containerd/containerd/v2/plugins/services/version"
	_ "github.com/containerd/containerd/v2/plugins/services/warning"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/native/plugin"
	_ "github.com/containerd/containerd/v2/plugins/streaming"
	_ "github.com/containerd/containerd/v2/plugins/transfer"
)

// disabled are plugins that come with a package above and must not run:
// grpc-prometheus registers with the process's one registry and panics the
// second time, grpc-otel and otelttrpc trace every call. Of the task manager
// runtime.go makes the runtime.
var disabled = []string{
	"io.containerd.metrics.v1.grpc-prometheus",
	"io.containerd.metrics.v1.grpc-otel",
	"io.containerd.runtime.v2.task",
	"io.containerd.server.v1.grpc-tcp",
}

// required are plugins without which the engine refuses to start; containerd
// itself would go on without them.
var required = []string{
	"io.containerd.content.v1.content",
	"io.containerd.differ.v1.walking",
	"io.containerd.gc.v1.scheduler",
	"io.containerd.grpc.v1.containers",
	"io.containerd.grpc.v1.events",
	"io.containerd.grpc.v1.healthcheck",
	"io.containerd.grpc.v1.introspection",
	"io.containerd.grpc.v1.tasks",
	"io.containerd.grpc.v1.version",
	"io.containerd.lease.v1.manager",
	"io.containerd.metadata.v1.bolt",
	"io.containerd.mount-manager.v1.bolt",
	"io.containerd.runtime.v2.joined",
	"io.containerd.sandbox.controller.v1.shim",
	"io.containerd.sandbox.store.v1.local",
	"io.containerd.server.v1.grpc",
	"io.containerd.server.v1.ttrpc",
	"io.containerd.service.v1.tasks-service",
	"io.containerd.shim.v1.manager",
	"io.containerd.snapshotter.v1.native",
	"io.containerd.snapshotter.v1.overlayfs",
	"io.containerd.streaming.v1.manager",
	"io.containerd.transfer.v1.local",
	clientPluginURI,
}
