// Stands for the library of this name in berth's go.mod; see libseccomp.go.
module github.com/seccomp/libseccomp-golang

go 1.26

require libseccomp.original v0.12.0

replace libseccomp.original => github.com/seccomp/libseccomp-golang v0.12.0
