package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	"k8s.io/utils/exec"
)

// Version 5 of the remote command protocol, the only one that client-go's
// WebSocket client speaks unless told otherwise: version 4 and a signal that
// closes one stream. cri-streaming does not serve it, so it is served here, on
// the same channels.

// channels of a connection.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelStatus
	channelResize
	channelCount
)

// serveV5 runs one exec or attach over a version 5 connection.
func serveV5(w http.ResponseWriter, r *http.Request, opts *remotecommand.Options, idle time.Duration, run runFunc) {
	kinds := make([]wsstream.ChannelType, channelCount)
	kinds[channelStatus], kinds[channelResize] = wsstream.WriteChannel, wsstream.ReadChannel
	for _, c := range []struct {
		wanted bool
		number int
		kind   wsstream.ChannelType
	}{
		{opts.Stdin, channelStdin, wsstream.ReadChannel},
		{opts.Stdout, channelStdout, wsstream.WriteChannel},
		{opts.Stderr, channelStderr, wsstream.WriteChannel},
	} {
		if c.wanted {
			kinds[c.number] = c.kind
		}
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: kinds},
	})
	conn.SetIdleTimeout(idle)
	_, streams, err := conn.Open(w, r)
	if err != nil {
		return // the client was told
	}
	defer conn.Close() // it may be closed by the client already

	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	resize := make(chan remotecommand.TerminalSize)
	go sendSizes(ctx, streams[channelResize], resize)
	err = run(ctx, streams[channelStdin], streams[channelStdout], streams[channelStderr], opts.TTY, resize)
	status, jerr := json.Marshal(statusOf(err))
	if jerr == nil {
		_, _ = streams[channelStatus].Write(status) // a client that has gone needs none
	}
}

// sendSizes hands on the terminal sizes that a client sends.
func sendSizes(ctx context.Context, from io.Reader, to chan<- remotecommand.TerminalSize) {
	defer close(to)
	for decoder := json.NewDecoder(from); ; {
		var size remotecommand.TerminalSize
		if decoder.Decode(&size) != nil {
			return // the connection has ended
		}
		select {
		case to <- size:
		case <-ctx.Done():
			return
		}
	}
}

// statusOf is what ends a session: how the command ended.
func statusOf(err error) metav1.Status {
	var exit exec.ExitError
	switch {
	case err == nil:
		return metav1.Status{Status: metav1.StatusSuccess}
	case errors.As(err, &exit) && exit.Exited():
		return metav1.Status{
			Status:  metav1.StatusFailure,
			Reason:  remotecommand.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", err),
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{
				{Type: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(exit.ExitStatus())},
			}},
		}
	}
	return metav1.Status{
		Status:  metav1.StatusFailure,
		Reason:  metav1.StatusReasonInternalError,
		Message: fmt.Sprintf("Internal error occurred: %v", err),
		Code:    http.StatusInternalServerError,
	}
}
