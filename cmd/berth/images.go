package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
)

func newImagesCommand(c *cli) *cobra.Command {
	var (
		out         output
		quiet, wide bool
		digests     bool
	)
	cmd := &cobra.Command{
		Use:               "images",
		Short:             "List images",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(func(cl *client.Client) error {
				resp, err := cl.Images.ListImages(cmd.Context(), &runtime.ListImagesRequest{})
				if err != nil {
					return err
				}
				if quiet {
					for _, img := range resp.GetImages() {
						fmt.Fprintln(cmd.OutOrStdout(), img.Id)
					}
					return nil
				}
				return out.message(cmd.OutOrStdout(), resp, func() *table { return imageTable(resp.GetImages(), wide, digests) })
			})
		},
	}
	out.flag(cmd, listFormats...)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs alone")
	cmd.Flags().BoolVar(&wide, "no-trunc", false, "print whole IDs")
	cmd.Flags().BoolVar(&digests, "digests", false, "show the digests of the manifests")
	return cmd
}

// imageTable has a row for each name of an image.
func imageTable(images []*runtime.Image, wide, digests bool) *table {
	t := newTable("NAME", "TAG", "IMAGE ID", "SIZE")
	if digests {
		t.header = append(t.header, "DIGEST")
	}
	for _, img := range images {
		names := img.RepoTags
		if len(names) == 0 {
			names = []string{"<none>"}
			if len(img.RepoDigests) > 0 {
				repository, _, _ := strings.Cut(img.RepoDigests[0], "@")
				names = []string{repository + ":<none>"}
			}
		}
		for _, name := range names {
			repository, tag := splitTag(name)
			row := []string{repository, tag, tableID(img.Id, wide), size(img.Size)}
			if img.Pinned {
				row[3] += " (pinned)"
			}
			if digests {
				row = append(row, digestOf(img, repository))
			}
			t.row(row...)
		}
	}
	slices.SortStableFunc(t.rows, slices.Compare)
	return t
}

// splitTag takes name:tag apart; a colon before a slash is a port's.
func splitTag(name string) (repository, tag string) {
	i := strings.LastIndex(name, ":")
	if i < 0 || strings.Contains(name[i:], "/") {
		return name, "<none>"
	}
	return name[:i], name[i+1:]
}

func digestOf(img *runtime.Image, repository string) string {
	for _, d := range img.RepoDigests {
		if name, digest, _ := strings.Cut(d, "@"); name == repository {
			return digest
		}
	}
	return "-"
}
