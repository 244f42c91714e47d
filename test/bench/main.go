// Command bench measures berth and containerd side by side, with the calls that
// a kubelet makes, and prints one table. docs/bench.md says what each figure is.
//
//	bench [-quick] [-only REGEXP] [-servers berth,containerd] [-o FILE]
//
// It runs in mount, network and PID namespaces of its own, with a tmpfs at
// /run, so that whatever a server leaves is gone with it. Both servers run all
// the time and are measured in turn, so that a noisy machine harms both alike.
// One goroutine measures; where clients call at once, they end before the next
// thing is measured. A call that fails is counted and shown.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
	"berth/internal/testkit/registrytest"
)

func main() {
	opts, err := parse(os.Args[1:])
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Exit(2)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: it runs daemons, containers and networks: run it as root")
		os.Exit(1)
	}
	os.Exit(testkit.Enter(func() int {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
		defer stop()
		if err := run(ctx, opts); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
		return 0
	}))
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.BoolVar(&o.quick, "quick", false, "few rounds: under three minutes")
	only := flags.String("only", "", "measure what matches this regular expression: pod.*, parallel.*, held50.*, exec.*, log.*, pull.*, count.*")
	servers := flags.String("servers", nameBerth+","+namePeer, "the servers to measure")
	flags.Float64Var(&o.rounds, "rounds", 1, "multiply the number of rounds, as 0.1")
	flags.StringVar(&o.bin, "bin", "", "directory of the programs; empty: bin/ of this source tree")
	flags.StringVar(&o.output, "o", "", "write the table to this file too, as Markdown")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return o, fmt.Errorf("-only: %w", err)
	}
	o.servers = strings.Split(*servers, ",")
	for _, name := range o.servers {
		if name != nameBerth && name != namePeer {
			return o, fmt.Errorf("-servers: no server %q: %s and %s are known", name, nameBerth, namePeer)
		}
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.bin == "" {
		root, err := testkit.RepoRoot()
		if err != nil {
			return o, fmt.Errorf("name the directory of the programs with -bin: %w", err)
		}
		o.bin = filepath.Join(root, "bin")
	}
	if o.output != "" {
		o.output, err = filepath.Abs(o.output)
	}
	return o, err
}

// run sets up, measures, shows, and takes everything down whatever happened.
func run(ctx context.Context, opts options) (err error) {
	b := &bench{options: opts, plan: fullPlan(), results: newResults(), progress: os.Stderr}
	if opts.quick {
		b.plan = quickPlan()
	}
	b.plan = b.plan.scaled(opts.rounds)
	b.figures = allFigures(b.plan.held)
	if !slices.ContainsFunc(b.figures, func(f figure) bool { return opts.only.MatchString(f.key) }) {
		return fmt.Errorf("-only %s matches no figure", opts.only)
	}
	began := time.Now()
	defer func() { err = errors.Join(err, b.takeDown()) }()
	if err := b.setUp(ctx); err != nil {
		return err
	}
	measured := b.measure(ctx)
	about, err := b.about(time.Since(began))
	if err != nil {
		return errors.Join(measured, err)
	}
	fmt.Println(strings.Join(about, "\n"))
	return errors.Join(measured, b.results.text(os.Stdout, b.figures), b.writeFile(ctx, about))
}

// writeFile writes the results of a run that came to its end.
func (b *bench) writeFile(ctx context.Context, about []string) (err error) {
	if b.output == "" || ctx.Err() != nil {
		return nil
	}
	f, err := os.Create(b.output)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return b.results.markdown(f, b.figures, about)
}

// setUp starts registry and servers, gives them the workload's image, and runs
// a pod on each, so that bridges and base rules are there.
func (b *bench) setUp(ctx context.Context) (err error) {
	if b.workspace, err = testkit.NewWorkspace(); err != nil {
		return err
	}
	if b.registry, err = registrytest.New(); err != nil {
		return err
	}
	pause, err := b.pushImages()
	if err != nil {
		return err
	}
	for _, name := range b.options.servers {
		var s *server
		if name == nameBerth {
			s, err = b.newBerth()
		} else {
			s, err = b.newPeer(pause)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		b.servers = append(b.servers, s)
		if err := s.start(ctx); err != nil {
			return err
		}
		for _, ref := range []string{b.image, pause} {
			if err := s.pull(ctx, &cri.ImageSpec{Image: ref}); err != nil {
				return fmt.Errorf("%s: %w\n%s", name, err, tail(s.logFile(), 2000))
			}
		}
		if err := b.with(ctx, s, idleArgs, func(p *pod) error { return p.execTrue(ctx) }); err != nil {
			return fmt.Errorf("the first pod of %s: %w\n%s", name, err, tail(s.logFile(), 3000))
		}
	}
	return nil
}

func (b *bench) pushImages() (pause string, err error) {
	program, err := compileWork(b.workspace.Base)
	if err != nil {
		return "", err
	}
	work, err := workImage(program)
	if err != nil {
		return "", err
	}
	small, err := pauseImage(program)
	if err != nil {
		return "", err
	}
	if _, err := b.registry.Push("bench/work:1", work); err != nil {
		return "", err
	}
	if _, err := b.registry.Push("bench/pause:1", small); err != nil {
		return "", err
	}
	b.image = b.registry.Ref("bench/work:1")
	return b.registry.Ref("bench/pause:1"), nil
}

// takeDown removes pods, ends daemons and removes files and cgroups.
func (b *bench) takeDown() error {
	var errs []error
	for _, s := range b.servers {
		errs = append(errs, s.close(context.Background()))
	}
	if b.registry != nil {
		errs = append(errs, b.registry.Close())
	}
	if b.workspace != nil {
		errs = append(errs, b.workspace.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take down: %w", err)
	}
	return nil
}
