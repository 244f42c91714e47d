// Package berthv1 is berth's own small API, served beside the CRI on the same
// socket: loading image archives, and pulling with progress. The messages and
// stubs are generated from berth.proto; generated values are not safe for
// concurrent writes, clients are safe for concurrent use.
//
// To regenerate: apt-get install protobuf-compiler, then go generate. The
// plugins' versions are pinned below, so that regeneration changes nothing.
package berthv1

//go:generate go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.11
//go:generate go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.1
//go:generate sh -c "PATH=$(go env GOPATH)/bin:$PATH protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative berth.proto"
