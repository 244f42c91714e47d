package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	berthv1 "berth/api/berth/v1"
	"berth/internal/client"
)

// A pullRequest is an image with credentials.
type pullRequest struct{ image, username, password string }

func newPullCommand(c *cli) *cobra.Command {
	var (
		creds string
		quiet bool
	)
	cmd := &cobra.Command{
		Use:   "pull IMAGE...",
		Short: "Pull images from their registries",
		Example: `  berth pull registry.k8s.io/busybox:1.36
  berth pull --creds - registry.example/app:2 < credentials   # "user:password"`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: c.completeImages(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			username, password, err := credentials(c.in, creds)
			if err != nil {
				return err
			}
			progress := cmd.ErrOrStderr()
			if quiet {
				progress = io.Discard
			}
			return c.with(func(cl *client.Client) error {
				for _, image := range args {
					id, err := pullImage(cmd.Context(), cl, pullRequest{image, username, password}, progress)
					if err != nil {
						return err // the server names the image
					}
					fmt.Fprintln(cmd.OutOrStdout(), id)
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&creds, "creds", "", `credentials as user:password, "user" to be asked, "-" to read them from stdin`)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print image IDs alone")
	return cmd
}

// credentials takes --creds apart; what it does not say is read.
func credentials(in io.Reader, creds string) (username, password string, err error) {
	if creds == "-" {
		line, err := bufio.NewReader(in).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", "", fmt.Errorf("--creds: read stdin: %w", err)
		}
		if creds = strings.TrimRight(line, "\r\n"); !strings.Contains(creds, ":") {
			return "", "", errors.New("--creds: stdin has no line user:password")
		}
	}
	username, password, found := strings.Cut(creds, ":")
	switch {
	case creds == "" || found && username != "":
		return username, password, nil
	case username == "":
		return "", "", errors.New("--creds: want user:password")
	}
	file, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return "", "", errors.New(`--creds: want user:password, or "-" to read that from stdin`)
	}
	fmt.Fprintf(os.Stderr, "Password of %s: ", username)
	secret, err := term.ReadPassword(int(file.Fd()))
	fmt.Fprintln(os.Stderr)
	if err != nil {
		return "", "", fmt.Errorf("--creds: read the password: %w", err)
	}
	return username, string(secret), nil
}

// pullImage pulls with progress, or without where the server has no such thing,
// and returns the image's ID.
func pullImage(ctx context.Context, cl *client.Client, req pullRequest, progress io.Writer) (string, error) {
	stream, err := cl.Admin.PullImage(ctx, &berthv1.PullImageRequest{Image: req.image, Username: req.username, Password: req.password})
	if err != nil {
		return "", err
	}
	show := newPullProgress(ctx, progress)
	var id string
	for {
		p, err := stream.Recv()
		if err == nil {
			id = cmp.Or(p.ImageId, id)
			show.update(p)
			continue
		}
		if show.end(errors.Is(err, io.EOF)); errors.Is(err, io.EOF) {
			return id, nil
		}
		if status.Code(err) == codes.Unimplemented {
			break
		}
		return "", err
	}
	auth := &runtime.AuthConfig{Username: req.username, Password: req.password}
	resp, err := cl.Images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: req.image}, Auth: auth})
	return resp.GetImageRef(), err
}
