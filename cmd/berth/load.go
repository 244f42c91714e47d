package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	berthv1 "berth/api/berth/v1"
	"berth/internal/client"
)

// loadChunk is well below a gRPC server's limit of a message.
const loadChunk = 1 << 20

func newLoadCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "load [FILE|-]...",
		Short: "Load images from OCI or docker archives",
		Long: `Load images from archives: OCI layouts or docker saves, as tar files, plain or
compressed with gzip or zstd. Without a file, or with "-", stdin is read. The
names under which the images are known are printed.`,
		Example: `  berth load image.tar
  docker save app:1 | berth load`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"-"}
			}
			return c.with(func(cl *client.Client) error {
				for _, file := range args {
					refs, err := loadFile(cmd, cl, c.in, file)
					if err != nil {
						return fmt.Errorf("load %s: %w", file, err)
					}
					for _, ref := range refs {
						fmt.Fprintln(cmd.OutOrStdout(), ref)
					}
				}
				return nil
			})
		},
	}
	return cmd
}

func loadFile(cmd *cobra.Command, cl *client.Client, in io.Reader, file string) (_ []string, err error) {
	if file == "-" {
		if isTerminal(in) {
			return nil, errors.New("stdin is a terminal: name a file, or pipe an archive in")
		}
		return sendArchive(cmd, cl, in)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return sendArchive(cmd, cl, f)
}

func sendArchive(cmd *cobra.Command, cl *client.Client, r io.Reader) ([]string, error) {
	stream, err := cl.Admin.LoadImage(cmd.Context())
	if err != nil {
		return nil, err
	}
	for {
		// Each chunk has its own memory: it is the stream's once sent.
		chunk := make([]byte, loadChunk)
		n, err := io.ReadFull(r, chunk)
		if n > 0 {
			if sendErr := stream.Send(&berthv1.LoadImageRequest{Chunk: chunk[:n]}); sendErr != nil {
				break // the answer says why
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the archive: %w", err)
		}
	}
	resp, err := stream.CloseAndRecv()
	return resp.GetRefs(), err
}
