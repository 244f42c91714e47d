package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// With a terminal, the command would never see the end of a pipe.
func TestExecTerminalOfPipe(t *testing.T) {
	s := aPod(t)
	s.Fail = map[string]error{"Exec": status.Error(codes.Internal, "far enough")}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	run([]string{"--address", s.Address(), "exec", "-it", "web/server", "--", "cat"}, r, &out, &errOut)
	if !strings.Contains(errOut.String(), "stdin is no terminal") {
		t.Errorf("stderr %q", errOut.String())
	}
}

func TestArgumentsAreExplained(t *testing.T) {
	s := aPod(t)
	fails(t, s, "usage: berth exec CONTAINER|POD [--] COMMAND [ARG...]", "exec", "web/server")
	fails(t, s, "usage: berth logs ", "logs")
}
