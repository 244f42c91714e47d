package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	berthv1 "berth/api/berth/v1"
)

// A pullProgress shows how far a pull is.
type pullProgress interface {
	update(*berthv1.PullProgress)
	end(complete bool)
}

// newPullProgress shows bars on a terminal, else a line for each layer that is
// here.
func newPullProgress(ctx context.Context, w io.Writer) pullProgress {
	if isTerminal(w) {
		return &pullBars{
			progress: mpb.NewWithContext(ctx, mpb.WithOutput(w), mpb.WithRefreshRate(100*time.Millisecond)),
			bars:     map[string]*layerBar{},
		}
	}
	return &pullLines{w: w, said: map[string]berthv1.PullProgress_Status{}}
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// pullBars is a bar a layer.
type pullBars struct {
	progress *mpb.Progress
	bars     map[string]*layerBar
}

// A layerBar is one layer, or the unpacking of the whole image.
type layerBar struct {
	bar    *mpb.Bar
	exists atomic.Bool // the bar is drawn by another goroutine
	last   time.Time
}

func (p *pullBars) update(l *berthv1.PullProgress) {
	switch l.Status {
	case berthv1.PullProgress_DONE:
		return
	case berthv1.PullProgress_UNPACKING:
		if p.bars[""] == nil {
			p.bars[""] = &layerBar{bar: p.progress.New(1, mpb.SpinnerStyle(), mpb.BarRemoveOnComplete(),
				mpb.PrependDecorators(decor.Name("unpacking")), mpb.BarFillerClearOnComplete())}
		}
		return
	}
	b := p.bars[l.Digest]
	if b == nil {
		b = &layerBar{last: time.Now()}
		b.bar = p.progress.New(l.Total, mpb.BarStyle().Lbound("[").Rbound("]").Filler("=").Tip(">").Padding(" "),
			mpb.BarFillerClearOnComplete(),
			mpb.PrependDecorators(decor.Name(shortID(l.Digest)+" ")),
			mpb.AppendDecorators(
				decor.OnComplete(decor.CountersKiloByte("% .1f / % .1f"), size(l.Total)),
				decor.OnComplete(decor.EwmaSpeed(decor.SizeB1000(0), "  % .1f", 30), ""),
				decor.Any(b.state),
			))
		p.bars[l.Digest] = b
	}
	switch l.Status {
	case berthv1.PullProgress_EXISTS, berthv1.PullProgress_DOWNLOADED:
		b.exists.Store(l.Status == berthv1.PullProgress_EXISTS)
		b.bar.SetCurrent(l.Total)
		b.bar.SetTotal(l.Total, true) // a layer may be empty
	case berthv1.PullProgress_DOWNLOADING:
		now := time.Now()
		b.bar.EwmaSetCurrent(l.Offset, now.Sub(b.last))
		b.last = now
	}
}

func (p *pullBars) end(complete bool) {
	for _, b := range p.bars {
		if complete {
			b.bar.SetTotal(-1, true)
		} else {
			b.bar.Abort(false)
		}
	}
	p.progress.Wait()
}

// state is what a complete layer says: that it was here before, or that it has
// been downloaded.
func (b *layerBar) state(s decor.Statistics) string {
	switch {
	case !s.Completed:
		return ""
	case b.exists.Load():
		return "  exists"
	}
	return "  done"
}

// pullLines is a line for each layer that is here.
type pullLines struct {
	w    io.Writer
	said map[string]berthv1.PullProgress_Status
}

func (p *pullLines) update(l *berthv1.PullProgress) {
	if p.said[l.Digest] == l.Status {
		return
	}
	p.said[l.Digest] = l.Status
	switch l.Status {
	case berthv1.PullProgress_UNPACKING:
		fmt.Fprintln(p.w, "unpacking")
	case berthv1.PullProgress_EXISTS, berthv1.PullProgress_DOWNLOADED:
		fmt.Fprintf(p.w, "%s: %s, %s\n", shortID(l.Digest), strings.ToLower(l.Status.String()), size(l.Total))
	}
}

func (p *pullLines) end(bool) {}
