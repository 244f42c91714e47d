package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
)

// completeTimeout bounds how long a shell waits for names.
const completeTimeout = 2 * time.Second

// A completer gives what may stand in place of an argument.
type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completePods completes up to most pods (0: any number).
func (c *cli) completePods(most int) completer {
	return c.complete(most, func(ctx context.Context, cl *client.Client) []string {
		set, err := cl.Set(ctx)
		if err != nil {
			return nil
		}
		return podNames(set)
	})
}

// completeContainers completes containers, and pods, which stand for their only
// container.
func (c *cli) completeContainers(most int) completer {
	return c.complete(most, func(ctx context.Context, cl *client.Client) []string {
		set, err := cl.Set(ctx)
		if err != nil {
			return nil
		}
		return append(podNames(set), containerNames(set)...)
	})
}

// completeImages completes images.
func (c *cli) completeImages(most int) completer {
	return c.complete(most, func(ctx context.Context, cl *client.Client) []string {
		list, err := cl.Images.ListImages(ctx, &runtime.ListImagesRequest{})
		if err != nil {
			return nil
		}
		return imageNames(list.GetImages())
	})
}

// completeAny completes pods, containers and images.
func (c *cli) completeAny(most int) completer {
	objects, images := c.completeContainers(most), c.completeImages(most)
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		a, directive := objects(cmd, args, typed)
		b, _ := images(cmd, args, typed)
		return append(a, b...), directive
	}
}

func (c *cli) complete(most int, names func(context.Context, *client.Client) []string) completer {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), completeTimeout)
		defer cancel()
		var found []string
		// A shell has no place for errors: there is nothing to complete.
		_ = c.with(func(cl *client.Client) error {
			found = names(ctx, cl)
			return nil
		})
		found = slices.DeleteFunc(found, func(name string) bool {
			return !strings.HasPrefix(name, typed) || slices.Contains(args, name)
		})
		slices.Sort(found)
		return slices.Compact(found), cobra.ShellCompDirectiveNoFileComp
	}
}

// podNames are the names that mean a pod: with namespace and, in the default
// one, without.
func podNames(set *client.Set) []string {
	var names []string
	for _, p := range set.Pods {
		names = append(names, client.PodName(p.Metadata))
		if p.GetMetadata().GetNamespace() == "default" {
			names = append(names, p.GetMetadata().GetName())
		}
	}
	return names
}

func containerNames(set *client.Set) []string {
	var names []string
	for _, ctr := range set.Containers {
		name := set.ContainerName(ctr)
		names = append(names, name)
		if short, ok := strings.CutPrefix(name, "default/"); ok {
			names = append(names, short)
		}
	}
	return names
}

func imageNames(images []*runtime.Image) []string {
	var names []string
	for _, img := range images {
		names = append(names, img.RepoTags...)
		if len(img.RepoTags) == 0 {
			names = append(names, shortID(img.Id))
		}
	}
	return names
}
