# berth's one vocabulary of targets, for people and for CI. `make help` lists them.
#
# Programs are linked statically. What runs containers (runc, containerd's shim
# for it, CNI plugins) is built from Go modules at the versions that
# tools/go.mod pins, and is built again only when they change.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build
# The order of prerequisites counts (deps before build), and go builds in
# parallel by itself.
.NOTPARALLEL:

GO ?= go
PREFIX ?= /usr/local
DESTDIR ?=
SYSCONFDIR ?= /etc
UNITDIR ?= /etc/systemd/system

# A semantic version always: a kubelet refuses a runtime whose version is none.
VERSION := $(or $(VERSION),$(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null || \
	echo "v0.0.0-dev+$$(git describe --always --dirty=.dirty --exclude '*' 2>/dev/null || echo unknown)"))
LDFLAGS := -s -w -X berth/internal/version.version=$(VERSION)
GOBUILD := $(GO) build -trimpath -buildvcs=false

# runc and the supervisor enter namespaces in C, and filter system calls with
# libseccomp.
STATIC_CGO := -buildmode=pie
STATIC_LD := -linkmode external -extldflags -static-pie
# The supervisor has a fixed address, as all Go programs have by default: it is
# executed for each process of a container, and would be relocated each time.
SUPERVISOR_LD := -linkmode external -extldflags -static
SECCOMP_PKG := github.com/seccomp/libseccomp-golang
SUPERVISOR_TAGS := seccomp netgo osusergo no_grpc
SECCOMP := pkg-config --exists libseccomp || { echo "libseccomp-dev and pkg-config are needed: run 'make deps' as root first" >&2; exit 1; }

LIBEXEC := bin/libexec
CNI := bridge host-local loopback portmap
CNI_PLUGINS := main/bridge ipam/host-local main/loopback meta/portmap
RUNTIMES := $(LIBEXEC)/runc $(LIBEXEC)/containerd-shim-runc-v2 $(CNI:%=$(LIBEXEC)/cni/%)
TOOL_PINS := tools/go.mod tools/go.sum

##@ Use

.PHONY: build
build: runtimes bin/berth bin/containerd-shim-berth-v1 ## build everything into bin/

.PHONY: demo
demo: deps build ## run a web server and its sidecar in a pod, look at it, take it away
	scripts/demo.sh

.PHONY: install
install: build ## install programs, unit, configuration, completions, manual pages (DESTDIR, PREFIX)
	rm -rf bin/stage
	GO='$(GO)' scripts/stage.sh bin/stage
	DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' UNITDIR='$(UNITDIR)' bin/stage/install.sh install

.PHONY: uninstall
uninstall: ## remove what install put there; configuration and data stay
	DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' UNITDIR='$(UNITDIR)' scripts/install.sh uninstall

.PHONY: dist
dist: build ## make a tarball, a Debian package and their checksums in dist/
	GO='$(GO)' scripts/dist.sh dist

.PHONY: deps
deps: ## install the Debian packages that are missing (root)
	scripts/deps.sh

##@ Work on it

# -race needs cgo, so the daemon under test is dynamically linked. The suites of
# daemons come after the others and one by one: each has both processors busy.
.PHONY: test
test: deps build bin/race/berth ## run every test, as root, with real containers and the race detector
	$(GO) test -race -timeout 20m $$($(GO) list ./... | grep -v '^berth/test/') $(SECCOMP_PKG)
	$(GO) test -race -timeout 20m -p 1 ./test/...

.PHONY: test-crash
test-crash: deps build bin/race/berth ## fail and kill the daemon at every step, check that nothing is lost or left
	BERTH_CRASH_FULL=1 BERTH_CRASH_KILLS=100 $(GO) test -count=1 -timeout 60m -v ./test/crash/...
	for handler in runc boxed; do \
		BERTH_CRASH_HANDLER=$$handler BERTH_CRASH_KILLS=20 $(GO) test -count=1 -timeout 20m -v -run 'TestEveryStep|TestKilledAtRandom' ./test/crash; \
	done

# Not part of test: its kubelet takes minutes to build the first time.
.PHONY: test-kubelet
test-kubelet: deps build bin/race/berth bin/test/kubelet bin/test/probed ## run a real kubelet on berth and check its pods through its API
	BERTH_KUBELET='$(CURDIR)/bin/test/kubelet' $(GO) test -race -count=1 -timeout 40m ./test/kubelet

# Not part of test: the machine is emulated. Its parts are kept in bin/vm; see
# test/vm/README.md.
VM_PARTS := bin/vm/root.img
VM_PACKAGES := qemu-system-x86 debootstrap busybox-static e2fsprogs
.PHONY: test-vm
test-vm: deps build $(VM_PARTS) ## boot a Debian with systemd, cgroup v2 and AppArmor under qemu, and test berth in it
	GO='$(GO)' test/vm/run.sh

$(VM_PARTS): test/vm/image.sh $(wildcard test/vm/guest/*)
	scripts/deps.sh $(VM_PACKAGES)
	test/vm/image.sh bin/vm

# Not part of test: it builds everything twice and installs it in a copy of this
# machine's file system.
.PHONY: test-dist
test-dist: deps build ## make the tarball and the package twice, install, use, upgrade and remove them
	BERTH_TEST_DIST=1 $(GO) test -count=1 -timeout 40m -v -run 'TestDist' ./packaging

# Not part of test: gVisor takes minutes to build the first time.
.PHONY: test-gvisor
test-gvisor: deps build bin/race/berth bin/test/runsc bin/test/containerd-shim-runsc-v1 ## run what gVisor supports of test/e2e on it, as a shim of others
	BERTH_TEST_TARGETS=embedded/runsc $(GO) test -race -count=1 -timeout 30m ./test/e2e

# QUICK=1 takes minutes and writes no file. ONLY picks figures; see docs/bench.md.
.PHONY: bench
bench: deps build bin/bench/containerd bin/bench/bench ## measure berth beside containerd (QUICK=1, ONLY=REGEXP)
	bin/bench/bench $(if $(QUICK),-quick,$(if $(ONLY),,-o test/bench/RESULTS.md)) $(if $(ONLY),-only '$(ONLY)')

FUZZTIME ?= 10s
.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME
	GO='$(GO)' scripts/fuzz.sh '$(FUZZTIME)'

.PHONY: lint
lint: bin/tools/staticcheck ## gofmt, go vet, staticcheck, shell syntax
	scripts/lint.sh

.PHONY: clean
clean: ## remove bin/ and dist/
	rm -rf bin dist

.PHONY: help
help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Go decides what has changed, so these always ask it.
.PHONY: bin/berth bin/containerd-shim-berth-v1 bin/race/berth bin/bench/bench
bin/berth:
	CGO_ENABLED=0 $(GOBUILD) -ldflags '$(LDFLAGS)' -o $@ ./cmd/berth
bin/containerd-shim-berth-v1:
	@$(SECCOMP)
	CGO_ENABLED=1 $(GOBUILD) -tags '$(SUPERVISOR_TAGS)' -ldflags '$(LDFLAGS) $(SUPERVISOR_LD)' -o $@ ./cmd/containerd-shim-berth-v1
bin/race/berth:
	$(GOBUILD) -race -ldflags '$(LDFLAGS)' -o $@ ./cmd/berth
	ln -sfn ../libexec bin/race/libexec
	ln -sfn ../containerd-shim-berth-v1 bin/race/containerd-shim-berth-v1

bin/bench/bench:
	CGO_ENABLED=0 $(GOBUILD) -o $@ ./test/bench

.PHONY: runtimes
runtimes: $(RUNTIMES) ## build what runs containers: runc, its shim, CNI plugins

$(LIBEXEC)/runc: $(TOOL_PINS)
	@$(SECCOMP)
	cd tools && CGO_ENABLED=1 $(GOBUILD) $(STATIC_CGO) -tags 'seccomp urfave_cli_no_docs netgo osusergo' \
		-ldflags '-s -w $(STATIC_LD)' -o ../$@ github.com/opencontainers/runc
	touch $@

$(LIBEXEC)/containerd-shim-runc-v2: $(TOOL_PINS)
	cd tools && CGO_ENABLED=0 $(GOBUILD) -tags no_grpc -ldflags '-s -w' -o ../$@ github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
	touch $@

$(CNI:%=$(LIBEXEC)/cni/%) &: $(TOOL_PINS)
	mkdir -p $(LIBEXEC)/cni
	cd tools && CGO_ENABLED=0 $(GOBUILD) -ldflags '-s -w' -o ../$(LIBEXEC)/cni/ \
		$(CNI_PLUGINS:%=github.com/containernetworking/plugins/plugins/%)
	touch $(CNI:%=$(LIBEXEC)/cni/%)

KUBELET_PINS := tools/kubelet/go.mod tools/kubelet/go.sum
KUBELET_VERSION = $$($(GO) list -m -f '{{.Version}}' k8s.io/kubernetes)
bin/test/kubelet: $(KUBELET_PINS)
	cd tools/kubelet && CGO_ENABLED=0 $(GOBUILD) -p 2 -o ../../$@ \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$(KUBELET_VERSION)" k8s.io/kubernetes/cmd/kubelet
	touch $@

.PHONY: bin/test/probed
bin/test/probed:
	CGO_ENABLED=0 $(GOBUILD) -o $@ ./test/kubelet/probed

# gVisor's runtime and its shim, by the names that containerd looks for.
GVISOR_PINS := tools/gvisor/go.mod tools/gvisor/go.sum
GVISOR_VERSION = $$($(GO) list -m -f '{{.Version}}' gvisor.dev/gvisor)
bin/test/runsc: $(GVISOR_PINS)
	cd tools/gvisor && CGO_ENABLED=0 $(GOBUILD) -p 2 -o ../../$@ \
		-ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$(GVISOR_VERSION)" gvisor.dev/gvisor/runsc
	touch $@

# tools/gvisor/shim.go says why it is not built as it is.
bin/test/containerd-shim-runsc-v1: $(GVISOR_PINS) tools/gvisor/shim.go
	mkdir -p bin/test/_shim-runsc
	cd tools/gvisor && cp shim.go ../../bin/test/_shim-runsc/main.go && \
		sed -e 's/^package v1$$/package main/' -e 's/oomScoreMax = -999$$/oomScoreMax = 0/' \
			"$$($(GO) list -m -f '{{.Dir}}' gvisor.dev/gvisor)/pkg/shim/v1/manager.go" >../../bin/test/_shim-runsc/manager.go && \
		grep -q 'oomScoreMax = 0$$' ../../bin/test/_shim-runsc/manager.go && \
		CGO_ENABLED=0 $(GOBUILD) -p 2 -ldflags '-s -w' -o ../../$@ ../../bin/test/_shim-runsc/main.go ../../bin/test/_shim-runsc/manager.go
	touch $@

# The peer that make bench measures: containerd's daemon with its CRI plugin.
CONTAINERD := github.com/containerd/containerd/v2
bin/bench/containerd: tools/bench/go.mod tools/bench/go.sum
	cd tools/bench && CGO_ENABLED=0 $(GOBUILD) -o ../../$@ \
		-ldflags "-s -w -X $(CONTAINERD)/version.Version=$$($(GO) list -m -f '{{.Version}}' $(CONTAINERD))" $(CONTAINERD)/cmd/containerd
	touch $@

bin/tools/staticcheck: $(TOOL_PINS)
	cd tools && CGO_ENABLED=0 $(GOBUILD) -o ../$@ honnef.co/go/tools/cmd/staticcheck
	touch $@
