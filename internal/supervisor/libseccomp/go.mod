// Stands for the library of this name in berth's go.mod; see libseccomp.go.
module github.com/seccomp/libseccomp-golang

go 1.26

require berth.libseccomp v0.12.0

replace berth.libseccomp => github.com/seccomp/libseccomp-golang v0.12.0
